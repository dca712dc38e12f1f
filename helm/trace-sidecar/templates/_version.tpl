{{/*
trace-sidecar.servesPolicies: fails if the cluster does not have the API of injection.apiVersion.
Otherwise helm would fail halfway through an install, with "no matches for kind".

With a cluster, helm knows the kinds that it serves. `helm template` knows a version at most: the
list has no kinds then, not even Pod.
*/}}
{{- define "trace-sidecar.servesPolicies" -}}
{{- $version := .Capabilities.KubeVersion.Version -}}
{{- $at := include "trace-sidecar.kubernetes" $version | int -}}
{{- $api := .Values.injection.apiVersion -}}
{{- $serves := ge $at (ternary 1034 1036 (hasSuffix "/v1beta1" $api)) -}}
{{- if .Capabilities.APIVersions.Has "v1/Pod" -}}
{{- $serves = .Capabilities.APIVersions.Has (printf "%s/MutatingAdmissionPolicy" $api) -}}
{{- end -}}
{{- if not $serves -}}
{{- $ways := list "set injection.enabled=false, and add the sidecar with the library chart trace-sidecar-lib or with kustomize (docs/deploy.md)" -}}
{{- if hasSuffix "/v1beta1" $api -}}
{{- $ways = prepend $ways "enable that API in the API server, which is off by default (Kubernetes 1.34 and 1.35)" -}}
{{- else if ge $at 1034 -}}
{{- $ways = prepend $ways "set injection.apiVersion=admissionregistration.k8s.io/v1beta1 if the API server has that API enabled (Kubernetes 1.34 and 1.35)" -}}
{{- else -}}
{{- $ways = prepend $ways "upgrade to Kubernetes 1.36" -}}
{{- end -}}
{{- fail (printf "this cluster (Kubernetes %s) has no MutatingAdmissionPolicy in %s, which injection needs: %s" $version $api (join "; or " $ways)) -}}
{{- end -}}
{{- end }}
