{{/* What is worked out for one agent from its values. */}}

{{/* How long a peer needs to drain, in whole seconds: its grace, and five to hand the rest back. */}}
{{- define "starling.drainWithinS" -}}
{{- add (ceil .graceS | int) 5 -}}
{{- end -}}

{{/* Above the drain, with room for the connection to close and the container to end. */}}
{{- define "starling.terminationGracePeriodSeconds" -}}
{{- if kindIs "invalid" .terminationGracePeriodSeconds -}}
{{- add (ceil .graceS | int) 15 -}}
{{- else -}}
{{- int .terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{- define "starling.llmEnv" -}}
{{- with .baseUrl }}
- name: MESH_LLM_BASE_URL
  value: {{ . | quote }}
{{- end }}
{{- with .model }}
- name: MESH_LLM_MODEL
  value: {{ . | quote }}
{{- end }}
{{- with .timeoutS }}
- name: MESH_LLM_TIMEOUT_S
  value: {{ . | quote }}
{{- end }}
{{- if .existingSecret }}
- name: MESH_LLM_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end -}}

{{/* Not empty, where the agent's code is not in the image that hooks run. */}}
{{- define "starling.isApart" -}}
{{- if or (hasKey (index .root.Values.agents .name) "image") .agent.wheels .agent.extraVolumeMounts -}}apart{{- end -}}
{{- end -}}

{{/* Arguments of `mesh topology apply`, as a JSON list. An agent's targets tell what it handles, and how long its queues may
     be, where the shared image holds them; of one with an image or wheels of its own only the names are known here. */}}
{{- define "starling.topologyArgs" -}}
{{- $targets := list -}}
{{- $names := list -}}
{{- range $name := keys .Values.agents | sortAlpha -}}
{{- $agent := include "starling.agent" (dict "root" $ "agent" $name) | fromYaml -}}
{{- if include "starling.isApart" (dict "root" $ "name" $name "agent" $agent) -}}
{{- $names = concat $names ($agent.capabilities | default list) -}}
{{- else -}}
{{- $targets = concat $targets $agent.targets -}}
{{- end -}}
{{- end -}}
{{- $args := concat (list "topology" "apply") (uniq $targets) -}}
{{- range uniq $names -}}{{- $args = concat $args (list "--capability" .) -}}{{- end -}}
{{- if .Values.topology.withCare -}}{{- $args = append $args "--with-care" -}}{{- end -}}
{{- toJson $args -}}
{{- end -}}

{{/* The pod of `mesh topology apply`, metadata and spec. */}}
{{- define "starling.topologyPod" -}}
{{- $identity := include "starling.nats.identity" (dict "root" . "said" .Values.nats.auth.operator "user" "ops") | fromJson -}}
metadata:
  {{- include "starling.commandMetadata" (dict "root" . "component" "topology") | nindent 2 }}
spec:
  {{- include "starling.commandPod" (dict "root" . "name" "topology" "identity" $identity "args" (include "starling.topologyArgs" . | fromJsonArray) "env" (dict "MESH_CONNECT_WITHIN_S" (include "starling.plain" .Values.jobs.connectWithinS))) | nindent 2 }}
{{- end -}}

{{/* The name of its Job beside the bundled NATS: another one for another revision, and for another pod. */}}
{{- define "starling.topologyJob" -}}
{{- printf "%s-topology-%d-%s" (include "starling.fullname" .) .Release.Revision (include "starling.topologyPod" . | sha256sum | trunc 5) -}}
{{- end -}}
