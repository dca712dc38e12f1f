"""What the spans come from: resource attributes, by OpenTelemetry's names.

Every sink whose upstream has a place for them takes them from here.
"""

from sidecar.config import PodConfig


def resource_attributes(pod: PodConfig) -> dict[str, str]:
    """The attributes that are known."""
    attributes = {
        "k8s.pod.name": pod.name,
        "k8s.namespace.name": pod.namespace,
        "k8s.node.name": pod.node,
    }
    return {name: value for name, value in attributes.items() if value}
