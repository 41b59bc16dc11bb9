{{- /* Name of everything in the release's own namespace. */ -}}
{{- define "graft.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" (.Release.Name | trunc 44 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}

{{- /* Name of objects elsewhere: releases of one name live in several namespaces. */ -}}
{{- define "graft.nameElsewhere" -}}
{{- printf "%s.%s" .Release.Namespace (include "graft.name" .) -}}
{{- end -}}

{{- define "graft.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "graft.labels" -}}
{{ include "graft.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* Arguments: the root, and an image with repository, tag and digest. */ -}}
{{- define "graft.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "graft.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "graft.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* The namespaces that are served, as JSON; an empty list is the whole cluster. */ -}}
{{- define "graft.serviceNamespaces" -}}
{{- if not .Values.clusterWide -}}
{{- .Values.serviceNamespaces | default (list .Release.Namespace) | toJson -}}
{{- else if or .Values.serviceNamespaces .Values.tenantNamespaces -}}
{{- fail "clusterWide serves every namespace: serviceNamespaces and tenantNamespaces must be empty then" -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- /* The namespaces of tenants, as JSON: those that are not served anyway. */ -}}
{{- define "graft.tenantNamespaces" -}}
{{- $served := include "graft.serviceNamespaces" . | fromJsonArray -}}
{{- $found := list -}}
{{- range .Values.tenantNamespaces -}}
{{- if not (has . $served) -}}
{{- $found = append $found . -}}
{{- end -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{- define "graft.subjects" -}}
- kind: ServiceAccount
  name: {{ include "graft.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}

{{- /* Who owns a CRD, "" if it is not there. Arguments: the root, and the CRD's name. */ -}}
{{- define "graft.crdOwner" -}}
{{- $root := index . 0 -}}
{{- $stored := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" (index . 1) -}}
{{- if $stored -}}
{{- $notes := $stored.metadata.annotations | default dict -}}
{{- $release := get $notes "meta.helm.sh/release-name" -}}
{{- if not $release -}}
no release
{{- else if and (eq $release $root.Release.Name) (eq (get $notes "meta.helm.sh/release-namespace") $root.Release.Namespace) -}}
this release
{{- else -}}
{{- $chart := get ($stored.metadata.labels | default dict) "helm.sh/chart" -}}
release {{ $release }} in namespace {{ get $notes "meta.helm.sh/release-namespace" }}{{ with $chart }} (chart {{ . }}){{ end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Not empty if the CRD is this release's to write. Arguments as above. */ -}}
{{- define "graft.crdIsOurs" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.crds.enabled -}}
{{- if or $root.Values.crds.adopt (has (include "graft.crdOwner" .) (list "" "this release")) -}}
yes
{{- end -}}
{{- end -}}
{{- end -}}
