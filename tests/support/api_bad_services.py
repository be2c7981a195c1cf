"""Bad PDServices: part of the table in `api_bad`. Their scenarios: `api_bad_scenarios`."""

from __future__ import annotations

from tests.support.api_case import of_service
from tests.support.api_objects import GONE

BAD_SERVICES = (
    of_service("name of 31 characters", {"metadata.name": "a" * 31}, "metadata.name", "at most 30"),
    of_service("name with a dot", {"metadata.name": "a.b"}, "metadata.name", "lower-case letters"),
    of_service(
        "name starting with a digit", {"metadata.name": "1a"}, "metadata.name", "starting with a"
    ),
    of_service("no model", {"spec.model": GONE}, "spec.model", "Required value"),
    of_service(
        "model name that ends with a space",
        {"spec.model.name": "llama 3 "},
        "spec.model.name",
        "must be a model name: printable text",
    ),
    of_service(
        "model name with a line break",
        {"spec.model.name": "llama\n3"},
        "spec.model.name",
        "must be a model name: printable text",
    ),
    *(
        of_service(
            f"engine type: {what}",
            {"spec.engine.type": name},
            "spec.engine.type",
            "must be letters, digits and '-', starting with a letter",
        )
        for what, name in (
            ("a space", "My Engine"),
            ("a digit first", "2Fast"),
            ("a path", "../engines"),
            ("a module", "os.path"),
            ("a line end", "Mine\n"),
        )
    ),
    of_service("no engine type", {"spec.engine.type": ""}, "spec.engine.type", "at least 1 chars"),
    of_service(
        "long engine type", {"spec.engine.type": "E" * 64}, "spec.engine.type", "may not be more"
    ),
    of_service(
        "engine type as a number", {"spec.engine.type": 7}, "spec.engine.type", "of type string"
    ),
    of_service("empty image", {"spec.engine.image": ""}, "spec.engine.image", "at least 1 chars"),
    of_service(
        "image with a space",
        {"spec.engine.image": "engine :1"},
        "spec.engine.image",
        "must be an image reference such as",
    ),
    of_service(
        "unknown pull policy",
        {"spec.engine.imagePullPolicy": "Sometimes"},
        "spec.engine.imagePullPolicy",
        '"Always", "IfNotPresent", "Never"',
    ),
    of_service(
        "a pull secret twice",
        {"spec.engine.imagePullSecrets": [{"name": "a"}, {"name": "a"}]},
        "spec.engine.imagePullSecrets[1]",
        "Duplicate value",
        parser_field="spec.engine.imagePullSecrets",
    ),
    of_service(
        "no devices",
        {"spec.prefill.instance.devicesPerNode": 0},
        "spec.prefill.instance.devicesPerNode",
        "greater than or equal to 1",
    ),
    of_service(
        "no pods",
        {"spec.decode.instance.nodes": 0},
        "spec.decode.instance.nodes",
        "greater than or equal to 1",
    ),
    of_service(
        "more pods than an instance may have",
        {"spec.decode.instance.nodes": 9},
        "spec.decode.instance.nodes",
        "less than or equal to 8",
    ),
    of_service(
        "pods as a text",
        {"spec.prefill.instance.nodes": "2"},
        "spec.prefill.instance.nodes",
        "must be of type integer",
    ),
    of_service(
        "a budget for one pod of each instance",
        {"spec.prefill.instance.nodes": 8, "spec.budget.0.devices": 17},
        "spec.budget",
        "prefill devicesPerNode x nodes",
    ),
    of_service(
        "devices as a fraction",
        {"spec.prefill.instance.devicesPerNode": 1.5},
        "spec.prefill.instance.devicesPerNode",
        "must be of type int32",
    ),
    of_service(
        "resource without a domain",
        {"spec.decode.instance.resource": "npu"},
        "spec.decode.instance.resource",
        "must be an extended resource such as huawei.com/Ascend910",
    ),
    of_service(
        "no slots",
        {"spec.decode.maxConcurrency": 0},
        "spec.decode.maxConcurrency",
        "greater than or equal to 1",
    ),
    of_service(
        "too many slots",
        {"spec.decode.maxConcurrency": 5000},
        "spec.decode.maxConcurrency",
        "less than or equal to 4096",
    ),
    of_service(
        "slots as text",
        {"spec.decode.maxConcurrency": "4"},
        "spec.decode.maxConcurrency",
        "must be of type integer",
    ),
    of_service(
        "an argument of the operator",
        {"spec.prefill.args": ["--slots=9"]},
        "spec.prefill.args",
        "use maxConcurrency for slots",
    ),
    of_service(
        "an environment variable of the operator",
        {"spec.prefill.env": [{"name": "PDSERVE_ROLE", "value": "decode"}]},
        "spec.prefill.env[0].name",
        "use another name",
    ),
    of_service(
        "an environment variable with a dash",
        {"spec.prefill.env": [{"name": "MY-VAR", "value": "x"}]},
        "spec.prefill.env[0].name",
        "must be letters, digits and '_'",
    ),
    of_service(
        "no startup deadline",
        {"spec.prefill.startupDeadlineSeconds": 0},
        "spec.prefill.startupDeadlineSeconds",
        "greater than or equal to 1",
    ),
    of_service(
        "no fabric name",
        {"spec.fabric": {"domainRef": {}}},
        "spec.fabric.domainRef.name",
        "Required value",
    ),
    of_service(
        "required locality without a level",
        {"spec.fabric.locality": {"mode": "Required"}},
        "spec.fabric.locality",
        "needs level: the name of the RoCEDomain level",
    ),
    of_service(
        "unknown locality",
        {"spec.fabric.locality": {"mode": "Strict"}},
        "spec.fabric.locality.mode",
        '"Preferred", "Required"',
    ),
    of_service(
        "budget without end",
        {"spec.budget.0.devices": 1_000_001},
        "spec.budget[0].devices",
        "less than or equal to 1000000",
    ),
    of_service(
        "budget below the minimum",
        {"spec.budget.0.devices": 3},
        "spec.budget",
        "devices must be enough for every scenario at its minimum",
    ),
    of_service(
        "budget of a resource that no role uses",
        {"spec.budget.0.resource": "nvidia.com/gpu"},
        "spec.budget",
        "must name a resource that prefill.instance or decode.instance requests",
    ),
    of_service(
        "budget twice",
        {"spec.budget": [{"resource": "huawei.com/Ascend910", "devices": n} for n in (96, 9)]},
        "spec.budget[1]",
        "Duplicate value",
        parser_field="spec.budget",
    ),
    of_service(
        "negative drain",
        {"spec.recovery": {"drainSeconds": -1}},
        "spec.recovery.drainSeconds",
        "greater than or equal to 0",
    ),
    of_service(
        "a node is suspect at once",
        {"spec.recovery": {"nodeSuspectSeconds": 0}},
        "spec.recovery.nodeSuspectSeconds",
        "greater than or equal to 1",
    ),
    of_service(
        "network peer of nothing",
        {"spec.networkPolicy": {"clients": [{}]}},
        "spec.networkPolicy.clients[0]",
        "needs either cidr, or namespaceLabels, podLabels or both",
    ),
    of_service(
        "network peer of both kinds",
        {"spec.networkPolicy": {"metrics": [{"cidr": "10.0.0.0/8", "podLabels": {"a": "b"}}]}},
        "spec.networkPolicy.metrics[0]",
        "needs either cidr, or namespaceLabels, podLabels or both",
    ),
    of_service(
        "network peer without a prefix",
        {"spec.networkPolicy": {"clients": [{"cidr": "10.0.0.1"}]}},
        "spec.networkPolicy.clients[0].cidr",
        "a block of addresses such as 10.0.0.0/8",
    ),
    of_service(
        "network peer with an empty selector",
        {"spec.networkPolicy": {"clients": [{"podLabels": {}}]}},
        "spec.networkPolicy.clients[0].podLabels",
        "at least 1",
    ),
    of_service(
        "17 network peers",
        {"spec.networkPolicy": {"clients": [{"cidr": "10.0.0.0/8"}] * 17}},
        "spec.networkPolicy.clients",
        "at most 16 items",
    ),
    of_service(
        "no gateway", {"spec.gateway": {"replicas": 0}}, "spec.gateway.replicas", "equal to 1"
    ),
    of_service(
        "gateway port", {"spec.gateway": {"port": 70000}}, "spec.gateway.port", "equal to 65535"
    ),
    of_service(
        "secret name",
        {"spec.gateway": {"auth": {"secretRef": {"name": "Keys"}}}},
        "spec.gateway.auth.secretRef.name",
        "must be the name of an object",
    ),
    of_service(
        "certificate without a Secret",
        {"spec.gateway": {"tls": {}}},
        "spec.gateway.tls.secretRef",
        "Required value",
    ),
    of_service(
        "tiny body limit",
        {"spec.gateway": {"maxBodyBytes": 1}},
        "spec.gateway.maxBodyBytes",
        "greater than or equal to 1024",
    ),
    of_service("unknown profile", {"spec.profile": "tpu"}, "spec.profile", "llama2-70b-h100x8"),
    of_service(
        "a collector without a scheme",
        {"spec.gateway": {"tracing": {"endpoint": "otel:4318"}}},
        "spec.gateway.tracing.endpoint",
        "must be a URL such as http://otel-collector.monitoring:4318",
    ),
    of_service(
        "a collector on no port",
        {"spec.gateway": {"tracing": {"endpoint": "http://otel:65536"}}},
        "spec.gateway.tracing.endpoint",
        "must be a URL such as http://otel-collector.monitoring:4318",
    ),
    of_service(
        "a collector with a password",
        {"spec.gateway": {"tracing": {"endpoint": "http://u:p@otel:4318"}}},
        "spec.gateway.tracing.endpoint",
        "must be a URL such as http://otel-collector.monitoring:4318",
    ),
    of_service(
        "a collector with a line break",
        {"spec.gateway": {"tracing": {"endpoint": "http://otel:4318/\n"}}},
        "spec.gateway.tracing.endpoint",
        "must be a URL such as http://otel-collector.monitoring:4318",
    ),
    of_service(
        "more traces than requests",
        {"spec.gateway": {"tracing": {"endpoint": "http://otel", "samplingPercent": 101}}},
        "spec.gateway.tracing.samplingPercent",
        "less than or equal to 100",
    ),
    of_service(
        "tracing to nowhere",
        {"spec.gateway": {"tracing": {"samplingPercent": 1}}},
        "spec.gateway.tracing.endpoint",
        "Required value",
    ),
    of_service(
        "origin with a path",
        {"spec.gateway": {"cors": {"origins": ["https://a.example/x"]}}},
        "spec.gateway.cors.origins[0]",
        "must be * or an origin such as",
    ),
    of_service(
        "no origin",
        {"spec.gateway": {"cors": {"origins": []}}},
        "spec.gateway.cors.origins",
        "at least 1 items",
    ),
    of_service(
        "an amount that is none",
        {"spec.gateway": {"resources": {"limits": {"memory": "1 GB"}}}},
        "spec.gateway.resources.limits[memory]",
        "must be a quantity such as",
        parser_field="spec.gateway.resources.limits",
    ),
    of_service(
        "a template that is a list",
        {"spec.gateway": {"template": []}},
        "spec.gateway.template",
        "must be of type object",
    ),
    of_service("misspelt field", {"spec.scenario": []}, "spec.scenario", "unknown field", code=400),
)
