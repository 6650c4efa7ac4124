{{/* What all triggers on NATS have in common. */}}
{{- define "starling.keda.nats" -}}
natsServerMonitoringEndpoint: {{ include "starling.nats.monitoring" .root | quote }}
useHttps: {{ eq (include "starling.nats.monitoringScheme" .root) "https" | quote }}
account: {{ include "starling.nats.account" .root | quote }}
lagThreshold: {{ int .keda.lagThreshold | quote }}
activationLagThreshold: {{ int .keda.activationLagThreshold | quote }}
{{- end -}}

{{/* Not empty, where KEDA asks Prometheus for the breakers of an agent. */}}
{{- define "starling.keda.watchesBreakers" -}}
{{- if and (eq .autoscaling.mode "keda") .breakers .autoscaling.keda.prometheus.serverAddress -}}so{{- end -}}
{{- end -}}

{{/* A trigger on Prometheus: name, query, prometheus (the values), full (the agent's name in Kubernetes). */}}
{{- define "starling.keda.prometheus" -}}
type: prometheus
name: {{ .name }}
metricType: AverageValue
{{- if .prometheus.existingSecret }}
authenticationRef:
  name: {{ .full }}-prometheus
{{- end }}
metadata:
  serverAddress: {{ .prometheus.serverAddress | quote }}
  query: {{ .query | quote }}
  threshold: "1"
  ignoreNullValues: "true"
  {{- if .prometheus.existingSecret }}
  authModes: bearer
  {{- end }}
{{- end -}}

{{/* A regular expression for any of these names. */}}
{{- define "starling.keda.anyOf" -}}
{{- $names := list -}}
{{- range . -}}{{- $names = append $names (regexQuoteMeta .) -}}{{- end -}}
{{- join "|" $names -}}
{{- end -}}
