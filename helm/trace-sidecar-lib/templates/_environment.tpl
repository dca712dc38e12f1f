{{/*
trace-sidecar.environment: variables for the agent's containers, which make the SGP client of an
agent made from an Agentex template post its spans to the sidecar.
*/}}
{{- define "trace-sidecar.environment" -}}
- name: SGP_CLIENT_BASE_URL
  value: {{ include "trace-sidecar.url" . | quote }}
{{- end }}

{{/* trace-sidecar.url: where agents post. */}}
{{- define "trace-sidecar.url" -}}
http://127.0.0.1:{{ .Values.config.listener.port }}
{{- end }}

{{/* trace-sidecar.ownAddress: a regular expression for base URLs of the sidecar itself. */}}
{{- define "trace-sidecar.ownAddress" -}}
(?i)^\s*https?://([^/]*@)?(127[.]0[.]0[.]1|localhost|\[::1\]):{{ .Values.config.listener.port }}([^0-9]|$)
{{- end }}

{{/* trace-sidecar.settings: the sidecar's own environment, sorted by section and key. */}}
{{- define "trace-sidecar.settings" -}}
{{- $values := .Values -}}
{{- range $section, $keys := $values.config }}
{{- range $key, $value := $keys }}
- name: {{ printf "SIDECAR_%s__%s" $section $key | upper }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
{{- end }}
{{- end }}
{{- if $values.spool.enabled }}
- name: SIDECAR_SPOOL__PATH
  value: {{ include "trace-sidecar.directory" . }}/spool.sqlite
- name: SIDECAR_SPOOL__MAX_BYTES
  value: {{ $values.spool.maxBytes }}
- name: SIDECAR_SPOOL__SYNC
  value: {{ $values.spool.sync }}
{{- end }}
{{- if $values.deadLetters.enabled }}
- name: SIDECAR_DEAD_LETTERS__PATH
  value: {{ include "trace-sidecar.directory" . }}/dead-letters.jsonl
- name: SIDECAR_DEAD_LETTERS__MAX_BYTES
  value: {{ $values.deadLetters.maxBytes }}
{{- end }}
{{- with $values.credentials }}
{{- if .secretName }}
{{- $variables := dict "sgpApiKey" "SGP_API_KEY" "sgpAccountId" "SGP_ACCOUNT_ID" "agentexApiKey" "SIDECAR_AGENTEX__API_KEY" }}
{{- $secret := .secretName }}
{{- range $which, $key := .keys }}
- name: {{ get $variables $which }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret }}
      key: {{ $key }}
      optional: true
{{- end }}
{{- end }}
{{- end }}
{{- with $values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}
