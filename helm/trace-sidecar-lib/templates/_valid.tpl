{{/*
trace-sidecar.valid: fails for values whose combination the schema can't check. In an agent's pod
they would keep the sidecar, and with it the agent, from starting, or have the pod rejected.
*/}}
{{- define "trace-sidecar.valid" -}}
{{- $config := .Values.config -}}
{{- if eq (int $config.listener.port) (int $config.admin.port) -}}
{{- fail (printf "config.listener.port and config.admin.port must differ: both are %d" (int $config.admin.port)) -}}
{{- end -}}
{{- range $sink := list "agentex" "sgp" -}}
{{- $url := dig $sink "base_url" "" $config -}}
{{- if regexMatch (include "trace-sidecar.ownAddress" $) $url -}}
{{- fail (printf "config.%s.base_url (%s) is the sidecar's own address" $sink $url) -}}
{{- end -}}
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
{{- range $name, $limit := .Values.resources.limits -}}
{{- $request := index $.Values.resources.requests $name -}}
{{- if gt (include "trace-sidecar.quantity" $request | int64) (include "trace-sidecar.quantity" $limit | int64) -}}
{{- fail (printf "resources.requests.%s (%s) must not be above resources.limits.%s (%s)" $name $request $name $limit) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/*
trace-sidecar.fits: fails if the files can grow above 80% of the volume. The rest is for the spool's
write-ahead log, its temporary files, and growth between two checks by the kubelet.
*/}}
{{- define "trace-sidecar.fits" -}}
{{- $files := 0 -}}
{{- $what := list -}}
{{- range $name := list "spool" "deadLetters" -}}
{{- $part := index $.Values $name -}}
{{- if $part.enabled -}}
{{- $files = add $files (include "trace-sidecar.quantity" $part.maxBytes | int64) -}}
{{- $what = append $what (printf "%s.maxBytes (%s)" $name $part.maxBytes) -}}
{{- end -}}
{{- end -}}
{{- $limit := .Values.volume.sizeLimit -}}
{{- if gt (mul $files 5) (mul (include "trace-sidecar.quantity" $limit | int64) 4) -}}
{{- fail (printf "%s must not be above 80%% of volume.sizeLimit (%s): the kubelet evicts the whole pod when the volume is full" (join " + " $what) $limit) -}}
{{- end -}}
{{- end }}

{{/* trace-sidecar.quantity: "250m" or "2" CPUs in thousandths, "96Mi" or "1Gi" in bytes. */}}
{{- define "trace-sidecar.quantity" -}}
{{- $units := dict "" 1000 "m" 1 "Mi" 1048576 "Gi" 1073741824 "MiB" 1048576 "GiB" 1073741824 -}}
{{- mul (regexFind "^[0-9]+" . | int64) (get $units (regexFind "[A-Za-z]*$" .)) -}}
{{- end }}
