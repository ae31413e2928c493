{{- define "wanstream.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (default .Chart.Name .Values.nameOverride) .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name (default .Chart.Name .Values.nameOverride) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "wanstream.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "wanstream.turnLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}-turn
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* UDP ports of the gateway's media: FIRST-LAST */ -}}
{{- define "wanstream.mediaPorts" -}}
{{ default "32768-60999" .Values.media.ports }}
{{- end }}

{{- define "wanstream.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "wanstream.selectorLabels" . }}
{{- end }}

{{- define "wanstream.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}{{ default (include "wanstream.fullname" .) .Values.serviceAccount.name }}
{{- else }}{{ default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Image of one part: (list . "gateway") */ -}}
{{- define "wanstream.image" -}}
{{- $root := index . 0 }}{{- $image := index $root.Values.image (index . 1) }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{- define "wanstream.claim" -}}
{{- if .Values.engines.createClaim }}{{ include "wanstream.fullname" . }}-engines
{{- else }}{{ .Values.engines.existingClaim }}
{{- end }}
{{- end }}

{{- define "wanstream.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "wanstream.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Where both sides find the same engines by the same paths. */ -}}
{{- define "wanstream.directories" -}}
- {name: WANSTREAM_HOME, value: /data}
{{- if .Values.assets.existingClaim }}
- {name: DAYDREAM_SCOPE_ASSETS_DIR, value: /uploads/assets}
{{- end }}
- name: WANSTREAM_ENGINES_DIR
  value: {{ if include "wanstream.claim" . }}/shared/engines/{{ .Values.engines.directory }}{{ else }}/data/engines{{ end }}
{{- end }}

{{- define "wanstream.mounts" -}}
- {name: data, mountPath: /data}
{{- if .Values.assets.existingClaim }}
- {name: assets, mountPath: /uploads}
{{- end }}
{{- if include "wanstream.claim" . }}
- {name: engines, mountPath: /shared, readOnly: true}
{{- end }}
{{- end }}

{{- define "wanstream.scheduling" -}}
{{- $selector := dict }}
{{- if .Values.gpu.product }}{{- $selector = dict "nvidia.com/gpu.product" .Values.gpu.product }}{{- end }}
{{- with merge $selector .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Resources of a container with the GPU: (list . .Values.triton.resources) */ -}}
{{- define "wanstream.gpuResources" -}}
{{- $root := index . 0 }}{{- $resources := deepCopy (index . 1) }}
{{- if $root.Values.gpu.count }}
{{- $_ := set $resources "limits" (merge (dict $root.Values.gpu.resource $root.Values.gpu.count) (default dict $resources.limits)) }}
{{- end }}
{{- toYaml $resources }}
{{- end }}
