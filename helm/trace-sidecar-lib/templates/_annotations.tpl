{{/*
trace-sidecar.podAnnotations: annotations of a pod, by which Prometheus scrapes the sidecar where it
follows the convention of prometheus.io. Not beside others of that convention: a pod has one port.
*/}}
{{- define "trace-sidecar.podAnnotations" -}}
prometheus.io/path: /metrics
prometheus.io/port: {{ .Values.config.admin.port | toString | quote }}
prometheus.io/scrape: "true"
{{- end }}
