{{/*
trace-sidecar.volumes: the volumes that the values need, as items of a list of volumes; nothing if
they need none. The emptyDir for the spool and dead letters outlives the container, not the pod.
*/}}
{{- define "trace-sidecar.volumes" -}}
{{- $certificates := include "trace-sidecar.certificates" . | trim -}}
{{- if or .Values.spool.enabled .Values.deadLetters.enabled -}}
- name: trace-sidecar
  emptyDir:
    sizeLimit: {{ .Values.volume.sizeLimit }}
{{- ternary "\n" "" (not (empty $certificates)) -}}
{{- end -}}
{{- if $certificates -}}
- name: trace-sidecar-certificates
  projected:
    # 0444: the sidecar is not root, and the pod's group is not the chart's to choose.
    defaultMode: 292
    sources:
      {{- $certificates | nindent 6 }}
{{- end -}}
{{- end }}

{{/* trace-sidecar.volumeMounts: where the container has these volumes. */}}
{{- define "trace-sidecar.volumeMounts" -}}
{{- $certificates := include "trace-sidecar.certificates" . | trim -}}
{{- if or .Values.spool.enabled .Values.deadLetters.enabled -}}
- name: trace-sidecar
  mountPath: {{ include "trace-sidecar.directory" . }}
{{- ternary "\n" "" (not (empty $certificates)) -}}
{{- end -}}
{{- if $certificates -}}
# The whole volume: files that are mounted by subPath keep their first content.
- name: trace-sidecar-certificates
  mountPath: {{ include "trace-sidecar.certificatesDirectory" . }}
  readOnly: true
{{- end -}}
{{- end }}

{{/*
trace-sidecar.certificates: the sources of the volume with the certificates; nothing without them.
None is optional: the pod waits for what is missing, and its events name it.
*/}}
{{- define "trace-sidecar.certificates" -}}
{{- range $upstream, $of := .Values.certificates }}
{{- range $kind, $name := dict "configMap" $of.ca.configMapName "secret" $of.ca.secretName }}
{{- if $name }}
- {{ $kind }}:
    name: {{ $name | quote }}
    items:
      - key: {{ $of.ca.key | quote }}
        path: {{ $upstream }}/ca.crt
{{- end }}
{{- end }}
{{- with $of.client }}
{{- if .secretName }}
- secret:
    name: {{ .secretName | quote }}
    items:
      - key: {{ .keys.certificate | quote }}
        path: {{ $upstream }}/tls.crt
      - key: {{ .keys.privateKey | quote }}
        path: {{ $upstream }}/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* trace-sidecar.directory: where the volume for the spool and dead letters is mounted. */}}
{{- define "trace-sidecar.directory" -}}
/var/lib/trace-sidecar
{{- end }}

{{/* trace-sidecar.certificatesDirectory: where the certificates are, in a folder per upstream. */}}
{{- define "trace-sidecar.certificatesDirectory" -}}
/etc/trace-sidecar/certificates
{{- end }}
