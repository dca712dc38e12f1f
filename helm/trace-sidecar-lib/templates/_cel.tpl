{{/*
trace-sidecar.toCel: a value as a CEL literal, for JSONPatch in a MutatingAdmissionPolicy.
Takes (dict "value" V "type" "Object.spec.containers"). Maps become typed objects, because the API
server does not compile maps of mixed types. Maps with free keys have values of one type, and stay maps.
*/}}
{{- define "trace-sidecar.toCel" -}}
{{- $type := .type -}}
{{- if kindIs "map" .value -}}
{{- $plain := has (regexFind "[^.]+$" $type) (list "requests" "limits" "volumeAttributes") -}}
{{- $fields := list -}}
{{- range $key, $value := .value -}}
{{- if $plain -}}
{{- $fields = append $fields (printf "%s: %s" (toJson $key) (toJson (toString $value))) -}}
{{- else -}}
{{- $fields = append $fields (printf "%s: %s" $key (include "trace-sidecar.toCel" (dict "value" $value "type" (printf "%s.%s" $type $key)))) -}}
{{- end -}}
{{- end -}}
{{- ternary "" $type $plain }}{ {{- join ", " $fields -}} }
{{- else if kindIs "slice" .value -}}
{{- $items := list -}}
{{- range .value -}}
{{- $items = append $items (include "trace-sidecar.toCel" (dict "value" . "type" $type)) -}}
{{- end -}}
[{{ join ", " $items }}]
{{- else -}}
{{- toJson .value -}}
{{- end -}}
{{- end }}
