"""Label, annotation, object and condition names that more than one process relies on.

Every string another component or a person may look for on a cluster object is here once.
"""

import hashlib
import re

GROUP = "pdserve.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FIELD_MANAGER = "pdserve"

# Labels on every pod of an instance.
LABEL_SERVICE = f"{GROUP}/service"
LABEL_SCENARIO = f"{GROUP}/scenario"
LABEL_GROUP_INDEX = f"{GROUP}/group-index"
LABEL_ROLE = f"{GROUP}/role"
LABEL_INSTANCE = f"{GROUP}/instance"
LABEL_MEMBER = f"{GROUP}/member"
"""On the pods of an instance of several members: which of them, from 0; absent at one member."""
LABEL_REVISION = f"{GROUP}/revision"
LABEL_SCALE_UNIT = f"{GROUP}/scale-unit"
"""On exactly one pod per P/D group, so that an HPA on `/scale` counts P/D groups, not pods."""
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
TOPOLOGY_PREFIX = f"topology.{GROUP}/"
"""`topology.pdserve.io/<level>` on pods: the value of that RoCEDomain level where the pod runs."""

# Variables of an engine that may change its role.
PREFILL_SLOTS = "PDSERVE_PREFILL_SLOTS"
"""Requests that it executes at once in role prefill; over the flag for the role it starts in."""
DECODE_SLOTS = "PDSERVE_DECODE_SLOTS"
"""The same in role decode."""

# Annotations.
ANNOTATION_DRAIN = f"{GROUP}/drain-started"
"""On a pod: RFC 3339 UTC time since which it leaves routes and drains; absent otherwise."""
ANNOTATION_FLIPS = f"{GROUP}/flips"
"""`true` on a pod whose engine changes its role while it runs, made alike for both roles."""
ANNOTATION_FLIP_TO = f"{GROUP}/flip-to"
"""Beside `ANNOTATION_DRAIN`: the role that the instance takes when it is idle; it stays."""
ANNOTATION_REPLACES = f"{GROUP}/replaces"
"""On a pod: uid of the faulty pod it stands in for."""
ANNOTATION_MEMBERS = f"{GROUP}/members"
"""On the pods of an instance of several members: how many it has; absent at one member."""
ANNOTATION_LEADER = f"{GROUP}/leader"
"""On the members of an instance but the first: uid of the first one's pod."""
ANNOTATION_LEADER_ADDRESS = f"{GROUP}/leader-address"
"""On the members of an instance but the first: address of the first one's pod, once it has one."""
ANNOTATION_CONTROL = f"{GROUP}/control"
"""On a pod of an instance: digests of the control credentials it accepts, one a line."""
ANNOTATION_CREDENTIALS = f"{GROUP}/credentials"
"""On a gateway pod: fingerprint of the request credential it was made with."""
ANNOTATION_CLOSED_SINCE = f"{GROUP}/closed-since"
"""On a PodDisruptionBudget: since when members are on nodes that take no new instance."""
ANNOTATION_ROTATE = f"{GROUP}/rotate"
"""On a PDService: a new value asks for new credentials."""
ANNOTATION_ROCE_DEVICES = f"{GROUP}/roce-devices"
"""On a Node: JSON list `[{"id": 0, "ip": "10.0.0.1"}, ...]`, ordered by device id."""
ANNOTATION_NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
"""On a pod: what Multus and others say of its networks, a JSON list."""
ANNOTATION_UNHEALTHY_DEVICES = f"{GROUP}/unhealthy-devices"
"""On a Node: comma-separated device ids that must not be used."""
ANNOTATION_ENDS_AT = f"{GROUP}/ends-at"
"""On a Node: when it ends, an RFC 3339 time; its instances move before."""
ANNOTATION_SPEC_HASH = f"{GROUP}/spec-hash"
"""On a Deployment: digest of the spec that the operator wants."""
ANNOTATION_METRICS_PORT = "prometheus.io/port"
ANNOTATION_METRICS_PATH = "prometheus.io/path"
"""On a pod: absent where the metrics are under `/metrics`."""
ANNOTATION_METRICS_SCRAPE = "prometheus.io/scrape"

# Readiness gate: set True by the operator once links of the running container are verified;
# the condition's message is the container id it was verified for.
CONDITION_LINKED = f"{GROUP}/Linked"

# ConfigMap keys.
KEY_PEERS = "peers.json"
KEY_ROUTES = "routes.json"

# Ports of our own containers.
PORT_HTTP = 8000
PORT_TRANSFER = 5600
PORT_METRICS = 9090


MAX_LABEL = 63
"""Characters of a label value; pod names are labels too."""
MAX_GROUP = 51
"""Characters of a ScenarioGroup's name."""
_POD_HASH = 7
"""Characters that an instance's name adds to its slot."""
_MEMBER = re.compile(r"-m[1-9][0-9]*$")


def scenario_group_name(service: str, scenario: str) -> str:
    """Name of the ScenarioGroup that a PDService makes for one of its scenarios."""
    return f"{service}-{scenario}"


def distinct_group_name(service: str, scenario: str) -> str:
    """Its name where another service's scenario has that one: `a-b` + `c` and `a` + `b-c`.

    At most MAX_GROUP characters: the name, cut, and a hash of both parts.
    """
    return _shortened(scenario_group_name(service, scenario), f"{service}/{scenario}", MAX_GROUP)


def routes_configmap_name(service: str) -> str:
    """Name of the ConfigMap holding the route table of a PDService."""
    return f"{service}-routes"


def peers_configmap_name(scenario_group: str, group_index: int) -> str:
    """Name of the ConfigMap holding the peer table of one P/D group, counted from 0."""
    return f"{scenario_group}-{group_index}-peers"


def budget_name(scenario_group: str, group_index: int) -> str:
    """Name of the PodDisruptionBudget of one P/D group, counted from 0."""
    return f"{scenario_group}-{group_index}"


def token_secret_name(service: str) -> str:
    """Name of the Secret whose key `token` operators and engines of older versions share."""
    return f"{service}-token"


def revision_name(scenario_group: str, revision: str) -> str:
    """Name of the ControllerRevision that keeps the template of one revision."""
    return f"{scenario_group}-{revision}"


def credentials_secret_name(service: str) -> str:
    """Name of the Secret with all credentials of a PDService; only the operator reads it."""
    return f"{service}-credentials"


def request_secret_name(service: str) -> str:
    """Name of the Secret that gateways mount; its key `request` is what engines know them by."""
    return f"{service}-request"


def slot_name(
    scenario_group: str, group_index: int, role: str, ordinal: int, members: int = 1
) -> str:
    """A durable place in a P/D group, e.g. `shop-chat-0-p1`; instances come and go in it.

    A ScenarioGroup's name is shortened, with a hash, in those slots alone where the name of a pod
    of an instance of so many members would not fit a label otherwise.
    """
    place = f"-{group_index}-{role[0]}{ordinal}"
    room = MAX_LABEL - _POD_HASH - len(place) - len(member_name("", members - 1))
    if len(scenario_group) <= room:
        return scenario_group + place
    return _shortened(scenario_group, scenario_group, room) + place


def member_name(instance: str, member: int) -> str:
    """Name of the pod of one member, counted from 0; the first one has the instance's name."""
    return f"{instance}-m{member}" if member else instance


def instance_name(pod: str) -> str:
    """Name of the instance that a pod is a member of, by the pod's name.

    The name of an instance ends in a hash of six hexadecimal digits, hence never like a member's.
    """
    return _MEMBER.sub("", pod)


def slot_of(pod: str) -> str:
    """The slot that a pod's instance holds, by the pod's name (`shop-chat-0-p1` of its pods).

    Of a name that is no instance's, what stands before the last `-`; "" without one.
    """
    return instance_name(pod).rpartition("-")[0]


def _shortened(name: str, whole: str, room: int) -> str:
    """`name` cut to at most `room` characters, ending in a hash of `whole`."""
    digest = hashlib.sha256(whole.encode()).hexdigest()[: _POD_HASH - 1]
    return f"{name[: room - _POD_HASH].rstrip('-')}-{digest}"
