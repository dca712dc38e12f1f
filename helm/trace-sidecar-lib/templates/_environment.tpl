{{/*
trace-sidecar.environment: variables for the agent's containers, which make the SGP client of an
agent made from an Agentex template post its spans to the sidecar, and not to a proxy.
*/}}
{{- define "trace-sidecar.environment" -}}
{{- include "trace-sidecar.scope" . -}}
- name: SGP_CLIENT_BASE_URL
  value: {{ include "trace-sidecar.url" . | quote }}
- name: NO_PROXY
  value: {{ include "trace-sidecar.noProxy" . | quote }}
{{- with include "trace-sidecar.clientUrl" . }}
- name: TRACE_SIDECAR_URL
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* trace-sidecar.clientUrl: where agents with the client post, if it is not where they do so anyway. */}}
{{- define "trace-sidecar.clientUrl" -}}
{{- if ne (int .Values.config.listener.port) 8318 }}{{ include "trace-sidecar.url" . }}{{ end -}}
{{- end }}

{{/*
trace-sidecar.noProxy: the NO_PROXY of the agent's containers. It can't be the agent's own with more
names in it: here, the container's other variables are unknown.
*/}}
{{- define "trace-sidecar.noProxy" -}}
{{ include "trace-sidecar.loopback" . }}{{ with .Values.agent.noProxy }},{{ . }}{{ end }}
{{- end }}

{{/*
trace-sidecar.loopback: what clients must not send to a proxy. Most of them exempt no address by
themselves, and know of no networks such as 127.0.0.0/8.
*/}}
{{- define "trace-sidecar.loopback" -}}
127.0.0.1,localhost,::1
{{- end }}

{{/* trace-sidecar.url: where agents post. */}}
{{- define "trace-sidecar.url" -}}
http://127.0.0.1:{{ .Values.config.listener.port }}
{{- end }}

{{/* trace-sidecar.ownAddress: a regular expression for base URLs of the sidecar itself. */}}
{{- define "trace-sidecar.ownAddress" -}}
{{- $hosts := list "127([.][0-9]+){1,3}" "([a-z0-9-]+[.])*localhost[.]?" `\[::1?\]` "0[.]0[.]0[.]0" -}}
{{- range .Values.config.listener.allowed_hosts }}{{ $hosts = append $hosts (regexQuoteMeta .) }}{{ end -}}
(?i)^\s*https?://([^/]*@)?({{ join "|" $hosts }}):{{ .Values.config.listener.port }}([^0-9]|$)
{{- end }}

{{/* trace-sidecar.settings: the sidecar's own environment, sorted by section and key. */}}
{{- define "trace-sidecar.settings" -}}
{{- $values := .Values -}}
{{- range $section, $keys := $values.config }}
{{- range $key, $value := $keys }}
- name: {{ printf "SIDECAR_%s__%s" $section $key | upper }}
  {{- if kindIs "slice" $value }}
  value: {{ join "," $value | quote }}
  {{- else }}
  value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- /* The agent's variables must not keep the sidecar, and with it the agent, from starting. */}}
- name: SIDECAR_POD__WRONG_VARIABLES
  value: ignore
{{- if $values.podIdentity }}
{{- range $key, $field := dict "name" "metadata.name" "namespace" "metadata.namespace" "node" "spec.nodeName" }}
- name: SIDECAR_POD__{{ upper $key }}
  valueFrom:
    fieldRef:
      fieldPath: {{ $field }}
{{- end }}
{{- end }}
{{- if $values.otlpHeaders.secretName }}
- name: SIDECAR_OTLP__HEADERS_FILE
  value: {{ include "trace-sidecar.headersDirectory" . }}/otlp
{{- end }}
{{- range $upstream, $of := $values.certificates }}
{{- $directory := printf "%s/%s" (include "trace-sidecar.certificatesDirectory" $) $upstream }}
{{- if or $of.ca.configMapName $of.ca.secretName }}
- name: SIDECAR_{{ upper $upstream }}__CA_FILE
  value: {{ $directory }}/ca.crt
{{- end }}
{{- if $of.client.secretName }}
- name: SIDECAR_{{ upper $upstream }}__CLIENT_CERT_FILE
  value: {{ $directory }}/tls.crt
- name: SIDECAR_{{ upper $upstream }}__CLIENT_KEY_FILE
  value: {{ $directory }}/tls.key
{{- end }}
{{- end }}
{{- if $values.spool.enabled }}
- name: SIDECAR_SPOOL__PATH
  value: {{ include "trace-sidecar.directory" . }}/spool.sqlite
- name: SIDECAR_SPOOL__MAX_BYTES
  value: {{ include "trace-sidecar.text" $values.spool.maxBytes | quote }}
- name: SIDECAR_SPOOL__SYNC
  value: {{ $values.spool.sync }}
{{- end }}
{{- if $values.deadLetters.enabled }}
- name: SIDECAR_DEAD_LETTERS__PATH
  value: {{ include "trace-sidecar.directory" . }}/dead-letters.jsonl
- name: SIDECAR_DEAD_LETTERS__MAX_BYTES
  value: {{ include "trace-sidecar.text" $values.deadLetters.maxBytes | quote }}
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
{{ include "trace-sidecar.items" . }}
{{- end }}
{{- end }}
