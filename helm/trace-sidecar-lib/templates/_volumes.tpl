{{/*
trace-sidecar.volumes: the emptyDir for the spool and dead letters, as one item of a list of volumes;
nothing if neither is enabled. It outlives the container, not the pod.
*/}}
{{- define "trace-sidecar.volumes" -}}
{{- if or .Values.spool.enabled .Values.deadLetters.enabled -}}
- name: trace-sidecar
  emptyDir:
    sizeLimit: {{ .Values.volume.sizeLimit }}
{{- end -}}
{{- end }}

{{/* trace-sidecar.directory: where that volume is mounted. */}}
{{- define "trace-sidecar.directory" -}}
/var/lib/trace-sidecar
{{- end }}
