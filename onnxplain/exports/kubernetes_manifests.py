"""Templates of a kustomize base: file name → text. `{word}` is replaced by a word, a line `<block>` by many lines.

Selectors are written out: kustomize adds labels to no empty one, and an empty selector means every pod.
"""

KUSTOMIZATION = """\
# kubectl apply -k . — or the base of your own overlay, which sets namespace, image, replicas and sizes.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - autoscaler.yaml
  - cache.yaml
  - deployment.yaml
  - disruptionbudget.yaml
  - networkpolicy.yaml
  - service.yaml
configMapGenerator:
  - name: onnxplain  # its name ends in a hash, so that pods start anew when a flag changes
    envs:
      - onnxplain.env
# With the Prometheus operator or KEDA in the cluster:
# components:
#   - components/monitoring
#   - components/keda
"""
ENVIRONMENT = """\
# Flags of `onnxplain serve`, each as its variable. Credentials of the store belong into a Secret of your overlay.
<flags>
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: onnxplain
spec:  # no replicas: the autoscaler counts them
  selector:
    matchLabels:
      app.kubernetes.io/name: onnxplain
  strategy:
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  template:
    metadata:
      labels:
        app.kubernetes.io/name: onnxplain
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "{metrics}"
        prometheus.io/path: /metrics
    spec:
      terminationGracePeriodSeconds: {grace}  # above the server's drain: {delay} s and {timeout} s
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        fsGroup: {user}
        fsGroupChangePolicy: OnRootMismatch
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
      containers:
        - name: onnxplain
          image: {image}
          args:
            - serve
          envFrom:
            - configMapRef:
                name: onnxplain
          # Plain text inside the cluster: a mesh or ingress speaks TLS. The kubelet's gRPC probes cannot.
          ports:
            - name: grpc
              containerPort: {grpc}
              protocol: TCP
            - name: http
              containerPort: {http}
              protocol: TCP
            - name: metrics
              containerPort: {metrics}
              protocol: TCP
          <probes>
          <resources>
          <security>
          <mounts>
      volumes:
        <volumes>
"""
SERVICE = """\
# For clients and ingresses that speak HTTP/1, and for those that open a connection per call.
apiVersion: v1
kind: Service
metadata:
  name: onnxplain
spec:
  selector:
    app.kubernetes.io/name: onnxplain
  ports:
    - name: grpc
      port: {grpc}
      targetPort: grpc
      appProtocol: kubernetes.io/h2c
      protocol: TCP
    - name: http
      port: {http}
      targetPort: http
      appProtocol: http
      protocol: TCP
---
# For gRPC clients: one address per replica. A connection lasts, so behind one address all calls of a client go to one
# replica. Ask dns:///onnxplain-grpc:{grpc} with the policy round_robin.
apiVersion: v1
kind: Service
metadata:
  name: onnxplain-grpc
spec:
  clusterIP: None
  selector:
    app.kubernetes.io/name: onnxplain
  ports:
    - name: grpc
      port: {grpc}
      targetPort: grpc
      appProtocol: kubernetes.io/h2c
      protocol: TCP
"""
AUTOSCALER = """\
# By processor time, and by rows in the queues where the cluster has onnxplain_queue_rows as a pods metric (Prometheus
# adapter). components/keda scales by the rows alone.
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: onnxplain
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: onnxplain
  minReplicas: 2
  maxReplicas: 10
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: 70
    - type: Pods
      pods:
        metric:
          name: onnxplain_queue_rows
        target:
          type: AverageValue
          averageValue: "{rows}"  # half a model's queue: above it callers are soon refused
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 300  # a replica that goes takes its compiled sessions along
"""
DISRUPTION = """\
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: onnxplain
spec:
  maxUnavailable: 1
  selector:
    matchLabels:
      app.kubernetes.io/name: onnxplain
"""
NETWORK = """\
# In: calls from this namespace, metrics to the namespace "monitoring". Out: names{out_says}.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: onnxplain
spec:
  podSelector:
    matchLabels:
      app.kubernetes.io/name: onnxplain
  policyTypes:
    - Ingress
    - Egress
  ingress:
    - from:
        - podSelector: {{}}
      ports:
        - port: {grpc}
          protocol: TCP
        - port: {http}
          protocol: TCP
    - from:
        - namespaceSelector:
            matchLabels:
              kubernetes.io/metadata.name: monitoring
      ports:
        - port: {metrics}
          protocol: TCP
  egress:
    - ports:
        - port: 53
          protocol: UDP
        - port: 53
          protocol: TCP
    <egress>
"""
CACHE = """\
# Downloads and compiled graphs, shared: a new replica starts from what others wrote, checked by digests.
# Without a storage class that many nodes can write to, replace the claim by an emptyDir in the deployment.
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: onnxplain-cache
spec:
  accessModes:
    - ReadWriteMany
  resources:
    requests:
      storage: 64Gi
"""
MONITORING_KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
resources:
  - podmonitor.yaml
"""
PODMONITOR = """\
# For the Prometheus operator: every replica is asked itself.
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata:
  name: onnxplain
spec:
  selector:
    matchLabels:
      app.kubernetes.io/name: onnxplain
  podMetricsEndpoints:
    - port: metrics
      path: /metrics
      interval: 15s
"""
KEDA_KUSTOMIZATION = """\
# KEDA makes an autoscaler of its own, so ours goes.
apiVersion: kustomize.config.k8s.io/v1alpha1
kind: Component
resources:
  - scaledobject.yaml
patches:
  - patch: |
      $patch: delete
      apiVersion: autoscaling/v2
      kind: HorizontalPodAutoscaler
      metadata:
        name: onnxplain
"""
SCALEDOBJECT = """\
# Rows that wait or run, per replica. serverAddress: your Prometheus.
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: onnxplain
spec:
  scaleTargetRef:
    name: onnxplain
  minReplicaCount: 2
  maxReplicaCount: 10
  cooldownPeriod: 300
  triggers:
    - type: prometheus
      metadata:
        serverAddress: http://prometheus-operated.monitoring.svc:9090
        query: sum(onnxplain_queue_rows{{pod=~"onnxplain-.*"}})
        threshold: "{rows}"  # half a model's queue: above it callers are soon refused
"""
FILES = {
    "kustomization.yaml": KUSTOMIZATION,
    "onnxplain.env": ENVIRONMENT,
    "deployment.yaml": DEPLOYMENT,
    "service.yaml": SERVICE,
    "autoscaler.yaml": AUTOSCALER,
    "disruptionbudget.yaml": DISRUPTION,
    "networkpolicy.yaml": NETWORK,
    "cache.yaml": CACHE,
    "components/monitoring/kustomization.yaml": MONITORING_KUSTOMIZATION,
    "components/monitoring/podmonitor.yaml": PODMONITOR,
    "components/keda/kustomization.yaml": KEDA_KUSTOMIZATION,
    "components/keda/scaledobject.yaml": SCALEDOBJECT,
}
