{{/*
trace-sidecar.volumes: the volumes that the values need, as items of a list of volumes; nothing if
they need none. The emptyDir for the spool and dead letters outlives the container, not the pod.
*/}}
{{- define "trace-sidecar.volumes" -}}
{{- include "trace-sidecar.scope" . -}}
{{- $certificates := include "trace-sidecar.certificates" . | trim -}}
{{- $items := list -}}
{{- if or .Values.spool.enabled .Values.deadLetters.enabled -}}
{{- $items = append $items (include "trace-sidecar.filesVolume" .) -}}
{{- end -}}
{{- if $certificates -}}
{{- $items = append $items (include "trace-sidecar.certificatesVolume" $certificates) -}}
{{- end -}}
{{- if .Values.otlpHeaders.secretName -}}
{{- $items = append $items (include "trace-sidecar.headersVolume" .) -}}
{{- end -}}
{{- with .Values.extraVolumes -}}
{{- $items = append $items (include "trace-sidecar.extraVolumes" .) -}}
{{- end -}}
{{- join "\n" $items -}}
{{- end }}

{{- define "trace-sidecar.filesVolume" -}}
- name: trace-sidecar
  emptyDir:
    sizeLimit: {{ include "trace-sidecar.bytes" (dict "value" .Values.volume.sizeLimit "what" "volume.sizeLimit") | quote }}
{{- end }}

{{- define "trace-sidecar.certificatesVolume" -}}
- name: trace-sidecar-certificates
  projected:
    # 0444: the sidecar is not root, and the pod's group is not the chart's to choose.
    defaultMode: 292
    sources:
      {{- . | nindent 6 }}
{{- end }}

{{- define "trace-sidecar.headersVolume" -}}
- name: trace-sidecar-headers
  secret:
    secretName: {{ .Values.otlpHeaders.secretName | quote }}
    # Like credentials: an agent does not wait for it.
    optional: true
    # 0444, as for certificates.
    defaultMode: 292
    items:
      - key: {{ .Values.otlpHeaders.key | quote }}
        path: otlp
{{- end }}

{{- define "trace-sidecar.extraVolumes" -}}
{{- $volumes := list -}}
{{- range deepCopy . -}}
{{- $limit := dig "emptyDir" "sizeLimit" "" . -}}
{{- if $limit -}}
{{- $what := printf "emptyDir.sizeLimit of the extra volume %s" .name -}}
{{- $_ := set .emptyDir "sizeLimit" (include "trace-sidecar.bytes" (dict "value" $limit "what" $what)) -}}
{{- end -}}
{{- $volumes = append $volumes . -}}
{{- end -}}
{{- include "trace-sidecar.items" $volumes -}}
{{- end }}

{{/*
trace-sidecar.items: a list, one item a line. As JSON, because toYaml writes some texts as blocks
whose line breaks are not only those that indent knows.
*/}}
{{- define "trace-sidecar.items" -}}
{{- range $at, $item := . -}}
{{- if $at }}{{ "\n" }}{{ end }}- {{ toJson $item }}
{{- end -}}
{{- end }}

{{/* trace-sidecar.volumeMounts: where the container has these volumes. */}}
{{- define "trace-sidecar.volumeMounts" -}}
{{- $items := list -}}
{{- if or .Values.spool.enabled .Values.deadLetters.enabled -}}
{{- $items = append $items (printf "- name: trace-sidecar\n  mountPath: %s" (include "trace-sidecar.directory" .)) -}}
{{- end -}}
{{- if include "trace-sidecar.certificates" . | trim -}}
{{- $items = append $items (include "trace-sidecar.certificatesMount" .) -}}
{{- end -}}
{{- if .Values.otlpHeaders.secretName -}}
{{- $items = append $items (include "trace-sidecar.headersMount" .) -}}
{{- end -}}
{{- with .Values.extraVolumeMounts }}{{ $items = append $items (include "trace-sidecar.items" .) }}{{ end -}}
{{- join "\n" $items -}}
{{- end }}

{{- define "trace-sidecar.certificatesMount" -}}
# The whole volume: files that are mounted by subPath keep their first content.
- name: trace-sidecar-certificates
  mountPath: {{ include "trace-sidecar.certificatesDirectory" . }}
  readOnly: true
{{- end }}

{{- define "trace-sidecar.headersMount" -}}
- name: trace-sidecar-headers
  mountPath: {{ include "trace-sidecar.headersDirectory" . }}
  readOnly: true
{{- end }}

{{/*
trace-sidecar.validVolumes: fails for extra volumes and mounts that would have the pod rejected, or
that would hide files of the sidecar.
*/}}
{{- define "trace-sidecar.validVolumes" -}}
{{- $own := list "trace-sidecar" "trace-sidecar-certificates" "trace-sidecar-headers" -}}
{{- $names := list -}}
{{- range .Values.extraVolumes -}}
{{- if has .name $own }}{{ fail (printf "extraVolumes: the name %s is the chart's own" .name) }}{{ end -}}
{{- if has .name $names }}{{ fail (printf "extraVolumes: two volumes are named %s" .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- $paths := list -}}
{{- range dig "projected" "sources" list . -}}
{{- range $source := . -}}
{{- range $source.items | default (list $source) -}}
{{- if and .path (has .path $paths) }}{{ fail (printf "extraVolumes: two files are named %s" .path) }}{{ end -}}
{{- $paths = append $paths .path -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $taken := list (include "trace-sidecar.directory" .) (include "trace-sidecar.certificatesDirectory" .) (include "trace-sidecar.headersDirectory" .) "/proc" "/sys" "/dev" "/app" "/bin" "/lib" "/lib64" "/usr" -}}
{{- $paths := list -}}
{{- range .Values.extraVolumeMounts -}}
{{- if not (has .name $names) -}}
{{- fail (printf "extraVolumeMounts: no volume in extraVolumes is named %s" .name) -}}
{{- end -}}
{{- $path := clean .mountPath -}}
{{- range $taken -}}
{{- if or (hasPrefix (print . "/") (print $path "/")) (hasPrefix (print $path "/") (print . "/")) -}}
{{- fail (printf "extraVolumeMounts: the mountPath %s is, is in or has in it %s, which is not free" $path .) -}}
{{- end -}}
{{- end -}}
{{- if has $path $paths }}{{ fail (printf "extraVolumeMounts: two mounts have the mountPath %s" $path) }}{{ end -}}
{{- $paths = append $paths $path -}}
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

{{/* trace-sidecar.headersDirectory: where the file with the headers for OTLP is. */}}
{{- define "trace-sidecar.headersDirectory" -}}
/etc/trace-sidecar/headers
{{- end }}
