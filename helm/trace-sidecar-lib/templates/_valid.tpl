{{/*
trace-sidecar.valid: fails for values whose combination the schema can't check. In an agent's pod
they would keep the sidecar, and with it the agent, from starting, or have the pod rejected.
*/}}
{{- define "trace-sidecar.valid" -}}
{{- include "trace-sidecar.scope" . -}}
{{- $config := .Values.config -}}
{{- if regexMatch "[:@][^/]*$" .Values.image.repository -}}
{{- fail (printf "image.repository (%s) has a tag or a digest in it: set image.tag or image.digest" .Values.image.repository) -}}
{{- end -}}
{{- if eq (int $config.listener.port) (int $config.admin.port) -}}
{{- fail (printf "config.listener.port and config.admin.port must differ: both are %d" (int $config.admin.port)) -}}
{{- end -}}
{{- range $sink, $key := dict "agentex" "base_url" "sgp" "base_url" "otlp" "endpoint" -}}
{{- $url := dig $sink $key "" $config -}}
{{- if regexMatch (include "trace-sidecar.ownAddress" $) $url -}}
{{- fail (printf "config.%s.%s (%s) is the sidecar's own address" $sink $key $url) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.otlpHeaders.secretName (dig "otlp" "headers_file" "" $config) -}}
{{- fail (printf "otlpHeaders.secretName and config.otlp.headers_file (%s) exclude each other" $config.otlp.headers_file) -}}
{{- end -}}
{{- range $upstream, $of := .Values.certificates -}}
{{- $section := get $config $upstream | default dict -}}
{{- if and $section.client_key_file (not $section.client_cert_file) -}}
{{- fail (printf "config.%s.client_key_file needs client_cert_file" $upstream) -}}
{{- end -}}
{{- if and $section.ca_file (or $of.ca.configMapName $of.ca.secretName) -}}
{{- fail (printf "certificates.%s.ca and config.%s.ca_file (%s) exclude each other" $upstream $upstream $section.ca_file) -}}
{{- end -}}
{{- if and $section.client_cert_file $of.client.secretName -}}
{{- fail (printf "certificates.%s.client and config.%s.client_cert_file (%s) exclude each other" $upstream $upstream $section.client_cert_file) -}}
{{- end -}}
{{- end -}}
{{- range .Values.env -}}
{{- if and (eq .name "SIDECAR_NETWORK__PROXY") (dig "network" "proxy" "" $config) -}}
{{- fail "SIDECAR_NETWORK__PROXY in env and config.network.proxy exclude each other" -}}
{{- end -}}
{{- end -}}
{{- range $pair := list (list "queue" "start_hold_s" 2.0 "open_span_ttl_s" 3600.0) (list "retry" "initial_s" 0.5 "max_s" 30.0) -}}
{{- $section := get $config (index $pair 0) | default dict -}}
{{- $low := dig (index $pair 1) (index $pair 2) $section | float64 -}}
{{- $high := dig (index $pair 3) (index $pair 4) $section | float64 -}}
{{- if gt $low $high -}}
{{- fail (printf "config.%s.%s (%v) must not be more than %s (%v)" (index $pair 0) (index $pair 1) $low (index $pair 3) $high) -}}
{{- end -}}
{{- end -}}
{{- range $kind, $of := .Values.resources -}}
{{- range $name, $value := $of -}}
{{- $what := printf "resources.%s.%s" $kind $name -}}
{{- $amount := include "trace-sidecar.amount" (dict "value" $value "what" $what) -}}
{{- if eq $name "memory" }}{{ $_ := include "trace-sidecar.bytes" (dict "value" $value "what" $what) }}{{ end -}}
{{- $request := index $.Values.resources.requests $name -}}
{{- if include "trace-sidecar.above" (list (include "trace-sidecar.amount" (dict "value" $request "what" $what)) $amount) -}}
{{- fail (printf "resources.requests.%s (%s) must not be above resources.limits.%s (%s)" $name (include "trace-sidecar.text" $request) $name (include "trace-sidecar.text" $value)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $pair := list (list "listener" "max_body") (list "queue" "max_bytes") (list "sgp" "max_batch_bytes") (list "otlp" "max_batch_bytes") -}}
{{- $size := dig (first $pair) (last $pair) "auto" $config -}}
{{- if ne (include "trace-sidecar.text" $size | lower) "auto" -}}
{{- include "trace-sidecar.atLeast" (dict "value" $size "what" (printf "config.%s.%s" (first $pair) (last $pair)) "least" "1B") -}}
{{- end -}}
{{- end -}}
{{- $queue := dig "queue" "max_bytes" "auto" $config -}}
{{- $memory := .Values.resources.limits.memory -}}
{{- if and $memory (ne (include "trace-sidecar.text" $queue | lower) "auto") -}}
{{- $twice := include "trace-sidecar.times" (list (include "trace-sidecar.amount" (dict "value" $queue "what" "config.queue.max_bytes" "size" true)) 2) -}}
{{- if include "trace-sidecar.above" (list $twice (include "trace-sidecar.amount" (dict "value" $memory "what" "resources.limits.memory"))) -}}
{{- fail (printf "config.queue.max_bytes (%s) must not be above half of resources.limits.memory (%s): a full queue would end the container" (include "trace-sidecar.text" $queue) (include "trace-sidecar.text" $memory)) -}}
{{- end -}}
{{- end -}}
{{- include "trace-sidecar.atLeast" (dict "value" .Values.spool.maxBytes "what" "spool.maxBytes" "least" "1MiB") -}}
{{- include "trace-sidecar.atLeast" (dict "value" .Values.deadLetters.maxBytes "what" "deadLetters.maxBytes" "least" "1B") -}}
{{- include "trace-sidecar.validVolumes" . -}}
{{- end }}

{{/* trace-sidecar.atLeast: fails if a size of the sidecar's own is below the least that it takes. */}}
{{- define "trace-sidecar.atLeast" -}}
{{- $size := include "trace-sidecar.amount" (dict "value" .value "what" .what "size" true) -}}
{{- $least := include "trace-sidecar.amount" (dict "value" .least "what" .what "size" true) -}}
{{- if include "trace-sidecar.above" (list $least $size) -}}
{{- fail (printf "%s (%s) must be at least %s" .what (include "trace-sidecar.text" .value) .least) -}}
{{- end -}}
{{- end }}

{{/*
trace-sidecar.fits: fails if the files can grow above 80% of the volume. The spool's log is in
spool.maxBytes, and it has no temporary files. The rest is for what the file system adds.
*/}}
{{- define "trace-sidecar.fits" -}}
{{- $files := "0" -}}
{{- $what := list -}}
{{- range $name := list "spool" "deadLetters" -}}
{{- $part := index $.Values $name -}}
{{- if $part.enabled -}}
{{- $one := printf "%s.maxBytes" $name -}}
{{- $files = include "trace-sidecar.plus" (list $files (include "trace-sidecar.amount" (dict "value" $part.maxBytes "what" $one "size" true))) -}}
{{- $what = append $what (printf "%s (%s)" $one (include "trace-sidecar.text" $part.maxBytes)) -}}
{{- end -}}
{{- end -}}
{{- $limit := .Values.volume.sizeLimit -}}
{{- $room := include "trace-sidecar.amount" (dict "value" $limit "what" "volume.sizeLimit") -}}
{{- if include "trace-sidecar.above" (list (include "trace-sidecar.times" (list $files 5)) (include "trace-sidecar.times" (list $room 4))) -}}
{{- fail (printf "%s must not be above 80%% of volume.sizeLimit (%s): the kubelet evicts the whole pod when the volume is full" (join " + " $what) (include "trace-sidecar.text" $limit)) -}}
{{- end -}}
{{- end }}

{{/* trace-sidecar.scope: fails if the scope is not the library's: all templates would render nothing. */}}
{{- define "trace-sidecar.scope" -}}
{{- if not (((.).Values).config) -}}
{{- fail "the templates trace-sidecar.* take .Subcharts.NAME, where NAME is the alias, or without one the name, of the dependency trace-sidecar-lib in Chart.yaml" -}}
{{- end -}}
{{- end }}
