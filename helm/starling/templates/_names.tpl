{{/* Names, labels and images. A template that needs the release's context gets it as `root`. */}}

{{- define "starling.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "starling.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "starling.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "starling.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "starling.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* What selects pods may never change with a version, so it is less than all labels. */}}
{{- define "starling.selectorLabels" -}}
app.kubernetes.io/name: {{ include "starling.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .agent }}
starling/agent: {{ . }}
{{- end }}
{{- end -}}

{{/* Of pods: without versions, which would start a server anew for nothing. */}}
{{- define "starling.podLabels" -}}
{{ include "starling.selectorLabels" . }}
app.kubernetes.io/part-of: starling
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "starling.labels" -}}
{{ include "starling.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: starling
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object: root, name, component, agent, annotations (a map), labels (a map). */}}
{{- define "starling.metadata" -}}
name: {{ .name }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "starling.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* An image's name. A digest says more than a tag, so it is used alone. */}}
{{- define "starling.image" -}}
{{- $registry := .root.Values.image.registry -}}
{{- if hasKey .image "registry" -}}{{- $registry = .image.registry -}}{{- end -}}
{{- $repository := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The values of one agent: what stands at the top of values.yaml, with what the agent says itself laid over it.
     Maps are merged, lists and plain values replaced. Gives YAML: read it with `fromYaml`. */}}
{{- define "starling.agent" -}}
{{- $shared := pick .root.Values "image" "replicas" "resources" "nodeSelector" "tolerations" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "env" "envFrom" "extraSecrets" "extraVolumes" "extraVolumeMounts" "extraContainers" "initContainers" "wheels" "annotations" "labels" "podAnnotations" "podLabels" "podSecurityContext" "securityContext" "startupProbe" "readinessProbe" "livenessProbe" "graceS" "terminationGracePeriodSeconds" "updateStrategy" "minReadySeconds" "revisionHistoryLimit" "autoscaling" "podDisruptionBudget" "llm" "extraEgress" "extraIngress" -}}
{{- mergeOverwrite (deepCopy $shared) (deepCopy (index .root.Values.agents .agent)) | toYaml -}}
{{- end -}}

{{- define "starling.agentName" -}}
{{- printf "%s-%s" (include "starling.fullname" .root) .agent -}}
{{- end -}}
