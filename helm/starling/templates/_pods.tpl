{{/* What pods of the mesh have in common: settings, security, where they run. */}}

{{/* The MESH_* settings that all processes of the release share, as a map of strings. */}}
{{- define "starling.settings" -}}
{{- $tls := include "starling.nats.tls" . | fromJson -}}
{{- $shared := dict
  "MESH_NATS_URL" (include "starling.nats.url" .)
  "MESH_PREFIX" .Values.mesh.prefix
  "MESH_REPLICAS" (include "starling.replicas" .)
  "MESH_GRACE_S" (include "starling.plain" .Values.graceS)
  "MESH_LOG_LEVEL" .Values.mesh.logLevel
  "MESH_LOG_FORMAT" .Values.mesh.logFormat
  "MESH_HTTP_HOST" .Values.mesh.httpHost
  "MESH_HTTP_PORT" "9464" -}}
{{- if $tls.ca -}}{{- $_ := set $shared "MESH_NATS_TLS_CA" "/etc/starling/nats-tls/ca.crt" -}}{{- end -}}
{{- if $tls.client -}}
{{- $_ := set $shared "MESH_NATS_TLS_CERT" "/etc/starling/nats-tls/tls.crt" -}}
{{- $_ := set $shared "MESH_NATS_TLS_KEY" "/etc/starling/nats-tls/tls.key" -}}
{{- end -}}
{{- range $name, $value := .Values.mesh.settings -}}{{- $_ := set $shared $name (include "starling.plain" $value) -}}{{- end -}}
{{- toYaml $shared -}}
{{- end -}}

{{/* Copies of each stream: as many as the bundled servers allow, up to three. */}}
{{- define "starling.replicas" -}}
{{- if .Values.mesh.replicas -}}
{{- .Values.mesh.replicas -}}
{{- else if .Values.nats.bundled.enabled -}}
{{- min 3 (int .Values.nats.bundled.replicas) -}}
{{- else -}}
3
{{- end -}}
{{- end -}}

{{/* The same settings as environment of a pod that may start before the ConfigMap is there. */}}
{{- define "starling.settingsEnv" -}}
{{- range $name, $value := include "starling.settings" . | fromYaml }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end -}}

{{- define "starling.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ .name }}{{ else }}{{ . }}{{ end }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* A topology spread constraint, over pods of the same agent or server where it names no others: constraint, and what
     selector labels need. */}}
{{- define "starling.spread" -}}
{{- toYaml .constraint }}
{{- if not (hasKey .constraint "labelSelector") }}
labelSelector:
  matchLabels:
    {{- include "starling.selectorLabels" . | nindent 4 }}
{{- end }}
{{- end -}}

{{/* The metadata of the pod of a command that ends: root, component. */}}
{{- define "starling.commandMetadata" -}}
labels:
  {{- include "starling.podLabels" . | nindent 2 }}
  {{- with .root.Values.jobs.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .root.Values.jobs.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The pod of a command that ends: root, component, name (of the container), args, identity, env. */}}
{{- define "starling.commandPod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: {{ .restartPolicy | default "Never" }}
{{- include "starling.pullSecrets" .root }}
securityContext:
  {{- toYaml .root.Values.podSecurityContext | nindent 2 }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .name }}
    image: {{ include "starling.image" (dict "root" .root "image" .root.Values.image) }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args:
      {{- toYaml .args | nindent 6 }}
    env:
      {{- include "starling.settingsEnv" .root | trim | nindent 6 }}
      {{- with include "starling.nats.env" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- range $name, $value := .env }}
      - name: {{ $name }}
        value: {{ $value | quote }}
      {{- end }}
      {{- with .root.Values.jobs.env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    securityContext:
      {{- toYaml .root.Values.securityContext | nindent 6 }}
    resources:
      {{- toYaml .root.Values.jobs.resources | nindent 6 }}
    volumeMounts:
      - name: tmp
        mountPath: /tmp
      {{- with include "starling.nats.volumeMounts" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
volumes:
  - name: tmp
    emptyDir: {}
  {{- with include "starling.nats.volumes" . | trim }}
  {{- . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A value as text. Helm reads every number as a float, and would write a large one as 1e+09. */}}
{{- define "starling.plain" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{- int64 . -}}{{- else -}}{{- . -}}{{- end -}}
{{- end -}}
