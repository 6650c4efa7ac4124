{{/* What all triggers on NATS have in common. */}}
{{- define "starling.keda.nats" -}}
natsServerMonitoringEndpoint: {{ include "starling.nats.monitoring" .root | quote }}
useHttps: {{ eq (include "starling.nats.monitoringScheme" .root) "https" | quote }}
account: {{ include "starling.nats.account" .root | quote }}
lagThreshold: {{ int .keda.lagThreshold | quote }}
activationLagThreshold: {{ int .keda.activationLagThreshold | quote }}
{{- end -}}

{{- define "starling.keda.prometheusAuth" -}}
{{- printf "%s-prometheus" (include "starling.fullname" .) -}}
{{- end -}}

{{- define "starling.keda.prometheusRef" -}}
{{- if .prometheus.existingSecret -}}
authenticationRef:
  name: {{ include "starling.keda.prometheusAuth" .root }}
{{- end -}}
{{- end -}}

{{/* A regular expression for any of these names. */}}
{{- define "starling.keda.anyOf" -}}
{{- $names := list -}}
{{- range . -}}{{- $names = append $names (regexQuoteMeta .) -}}{{- end -}}
{{- join "|" $names -}}
{{- end -}}
