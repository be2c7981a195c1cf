"""`kubectl pdserve ask`: one streamed answer of a PDService, and how fast it came.

Finds the service, how a request reaches the scenario (`ask_target`) and a ready gateway pod, sends
the request through the API server (`ask_stream`), prints the answer to standard output as it comes
and one line about it to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from pdserve import api
from pdserve.cli import snapshot
from pdserve.cli.ask_stream import (
    AskResult,
    PodProxy,
    Question,
    pod_proxy,
    request_id,
    told,
)
from pdserve.cli.ask_target import (
    Address,
    AskError,
    GatewayPod,
    address,
    first_key,
    gateways,
    no_gateway,
    readiness,
)
from pdserve.desired.objects import COMPONENT, gateway_name
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import PODS, SECRETS, Object
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names
from pdserve.wire.calls import (
    HEADER_API_KEY,
    HEADER_DECODE,
    HEADER_PREFILL,
    HEADER_SCENARIO,
    PATH_CHAT,
    PATH_COMPLETIONS,
)

ENV_API_KEY = "PDSERVE_API_KEY"
MAX_TOKENS = 64
MAX_TEMPERATURE = 2.0
"""OpenAI's bound."""
PATIENCE_SECONDS = 2.0
"""Silence after which standard error says what is waited for."""

_EXAMPLES = f"""\
The request goes through the API server to a ready gateway pod: no port-forward, and no need to
reach pods from here (those of process nodes are asked directly). You need `get` on pdservices,
`list` on pods and `create` on pods/proxy; for a gateway that wants an API key also `get` on its
Secret, or ${ENV_API_KEY}.
Text goes to standard output as it comes; the last line, on standard error, tells the scenario,
the instances, TTFT and TPOT as seen from here, and the tokens.

examples:
  kubectl pdserve ask shop "Tell me about the sea"
  kubectl pdserve ask shop --scenario search --max-tokens 20 "ships and harbours"
  kubectl pdserve ask shop --completion - < prompt.txt
  kubectl pdserve ask shop -n prod -o json "Hello" | jq .ttft_ms
"""


def add_parser(commands: Any, connection: argparse.ArgumentParser) -> None:
    """Add `ask` to the commands of `kubectl pdserve`; `connection` says which API server."""
    parser = commands.add_parser(
        "ask",
        parents=[connection],
        help="one streamed answer, with TTFT and TPOT",
        description="Ask a PDService one question and see the answer come.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="SERVICE", help="PDService")
    parser.add_argument("prompt", nargs="+", metavar="PROMPT", help="words; `-`: standard input")
    parser.add_argument("-n", "--namespace", help="default: the context's")
    parser.add_argument("--scenario", metavar="NAME", help="send what this scenario asks for")
    parser.add_argument(
        "--max-tokens", type=_positive, default=MAX_TOKENS, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T",
        help="0: the likeliest token each time; default: the engine's",
    )  # fmt: skip
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--chat", action="store_true", help="as a chat message (default)")
    kind.add_argument("--completion", action="store_true", help="as a text to be continued")


async def run(arguments: argparse.Namespace) -> int:
    """Ask; the exit status: 0 a whole answer, 1 one that broke off.

    Raises:
        AskError: it cannot be asked, or was refused; the message says what to do.
        snapshot.NotFoundError, KubeError, ConnectError, ApiError: as the other commands.
    """
    namespace, name = arguments.namespace, arguments.name
    prompt = " ".join(arguments.prompt)
    if prompt == "-":
        prompt = await asyncio.to_thread(sys.stdin.read)
    client = await connect(arguments.kubeconfig, context=arguments.context)
    try:
        service, pods = await _look(client, namespace, name)
        target = address(service, arguments.scenario)
        ready = gateways(pods)
        if not ready:
            raise AskError(no_gateway(service, pods))
        headers = dict(target.headers)
        if (auth := service.spec.gateway.auth) is not None:
            headers[HEADER_API_KEY] = await _api_key(client, namespace, auth.secret_ref.name)
    finally:
        await client.close()
    if state := readiness(service):
        note(f"PDService {namespace}/{name} is not Ready ({state}); asking all the same")
    sampling: JsonObject = {"max_tokens": arguments.max_tokens}
    if arguments.temperature is not None:
        sampling["temperature"] = arguments.temperature
    question = _question(target, headers, prompt, sampling, not arguments.completion)
    screen = Screen(quiet=arguments.output == "json")
    async with pod_proxy(arguments.kubeconfig, arguments.context) as proxy:
        answer = await _ask_one_of(proxy, service, ready, question, screen)
    screen.end()
    if answer.status != 200:
        raise AskError(_refused(service, answer))
    facts = _facts(service, target, answer)
    if arguments.output == "json":
        print(json.dumps({"text": screen.text, **facts}, indent=2, ensure_ascii=False))
    else:
        print(_line(facts), file=sys.stderr)
    if answer.error or not answer.complete:
        why = _worded(answer.error) or "the stream ended without its last event"
        note(f"the answer broke off: {why}")
        return 1
    return 0


async def _look(
    client: KubeClient, namespace: str, name: str
) -> tuple[api.PDService, tuple[Object, ...]]:
    """The service and the pods of its gateway."""
    selector = f"{names.LABEL_COMPONENT}={COMPONENT},{names.LABEL_SERVICE}={name}"
    try:
        found, pods = await asyncio.gather(
            client.get(snapshot.SERVICES, name, namespace),
            client.list(PODS, namespace, label_selector=selector),
        )
    except KubeError as error:
        if error.is_not_found:
            # Says which services there are, or that the kind itself is not known.
            await snapshot.read_services(client, namespace, name)
        raise
    return api.PDService.stored(found), pods.items


async def _api_key(client: KubeClient, namespace: str, secret: str) -> str:
    if given := os.environ.get(ENV_API_KEY, "").strip():
        return given
    try:
        key = first_key(await client.get(SECRETS, secret, namespace))
    except KubeError as error:
        if error.is_forbidden:
            raise AskError(
                f"its gateway wants an API key, and you may not read Secret {secret!r} "
                f"({error.message}): set {ENV_API_KEY} to a key"
            ) from error
        if error.is_not_found:
            raise AskError(
                f"its gateway wants an API key, and Secret {secret!r} of spec.gateway.auth does "
                f"not exist: `kubectl create secret generic {secret} -n {namespace} "
                "--from-literal=team=KEY`"
            ) from error
        raise
    if key is None:
        raise AskError(
            f"its gateway wants an API key, and Secret {secret!r} holds none: put one key per line "
            "under any name"
        )
    return key


def _question(
    target: Address, headers: Mapping[str, str], prompt: str, sampling: JsonMap, chat: bool
) -> Question:
    body: JsonObject = {
        "model": target.model,
        **sampling,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if chat:
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    return Question(PATH_CHAT if chat else PATH_COMPLETIONS, body, headers)


class Screen:
    """Standard output while an answer comes; says on standard error that nothing comes yet."""

    def __init__(self, quiet: bool) -> None:
        self.text = ""
        self._quiet = quiet
        self._timer = asyncio.get_running_loop().call_later(
            PATIENCE_SECONDS, note, "waiting for the first token ..."
        )

    def show(self, text: str) -> None:
        """A piece of the answer."""
        self._timer.cancel()
        self.text += text
        if not self._quiet:
            sys.stdout.write(text)
            sys.stdout.flush()

    def end(self) -> None:
        """Nothing more comes."""
        self._timer.cancel()
        if self.text and not self._quiet and not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


async def _ask_one_of(
    proxy: PodProxy,
    service: api.PDService,
    pods: Sequence[GatewayPod],
    question: Question,
    screen: Screen,
) -> AskResult:
    """The first gateway that can be reached answers: nothing has begun on those that cannot."""
    namespace = service.metadata.namespace
    problems = []
    for pod in pods:
        try:
            return await proxy.ask(namespace, pod, question, screen.show)
        except KubeError as error:
            if error.is_forbidden:
                raise AskError(_forbidden(service, error)) from error
            if not (error.is_not_found or error.status == 503):
                raise
            problems.append(f"{pod.name}: {error.message}")
    raise AskError(
        "the API server reaches no gateway pod of it: " + "; ".join(problems) + "; can the control "
        f"plane reach pods? Else: {_port_forward(service)}"
    )


def _forbidden(service: api.PDService, error: KubeError) -> str:
    return (
        f"you may not send requests to pods through the API server: {error.message}\n"
        f"Ask for a Role in namespace {service.metadata.namespace!r} with "
        "{apiGroups: [''], resources: [pods/proxy], verbs: [create]}, "
        f"or where you may forward ports: {_port_forward(service)}"
    )


def _port_forward(service: api.PDService) -> str:
    meta = service.metadata
    port = service.spec.gateway.port
    return (
        f"`kubectl port-forward -n {meta.namespace} svc/{gateway_name(meta.name)} 8080:{port}` and "
        "use http://127.0.0.1:8080/v1 from any OpenAI client"
    )


def _refused(service: api.PDService, answer: AskResult) -> str:
    """The gateway's error, and what to do about it."""
    meta = service.metadata
    message = f"gateway {answer.gateway} answered {answer.status} {_worded(answer.error)}"
    if answer.status == 401:
        auth = service.spec.gateway.auth
        where = f"Secret {auth.secret_ref.name!r}" if auth else "the Secret it was started with"
        used = f"${ENV_API_KEY}" if os.environ.get(ENV_API_KEY) else where
        return (
            f"{message}\nThe key was from {used}. Gateways see a changed Secret within a minute; "
            f"or: {_port_forward(service)}"
        )
    if answer.status == 503:
        state = readiness(service)
        return (
            message
            + (f"\nThe service is not Ready: {state}" if state else "")
            + f"\nLook: `kubectl pdserve explain {meta.name} -n {meta.namespace}`"
        )
    return message


def _worded(error: JsonMap) -> str:
    parts = (error.get("code") or error.get("type"), error.get("message"))
    return ": ".join(str(part) for part in parts if part)


def _facts(service: api.PDService, target: Address, answer: AskResult) -> JsonObject:
    """What `-o json` gives beside the text; None: not known."""
    timeline = answer.timeline
    return {
        "finish_reason": answer.finish_reason or None,
        "usage": dict(answer.usage) or None,
        "ttft_ms": _ms(timeline.ttft),
        "handoff_ms": _ms(timeline.handoff),
        # 0 when all of it came here at once: nothing was measured then.
        "tpot_ms": _ms(timeline.tpot or None),
        "e2e_ms": _ms(answer.seconds),
        "service": service.metadata.name,
        "namespace": service.metadata.namespace,
        "model": target.model,
        "scenario": told(answer, HEADER_SCENARIO) or target.scenario,
        "gateway": answer.gateway,
        "prefill": told(answer, HEADER_PREFILL) or None,
        "decode": told(answer, HEADER_DECODE) or None,
        "request_id": request_id(answer) or None,
        "complete": answer.complete and not answer.error,
        "error": dict(answer.error) or None,
    }


def _line(facts: JsonMap) -> str:
    """The facts in one line."""
    usage = facts["usage"] or {}
    parts = [f"scenario {facts['scenario']}"]
    parts += [f"{role} {facts[role]}" for role in ("prefill", "decode") if facts[role]]
    parts += [
        f"{label} {facts[key]:g} ms"
        for label, key in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"))
        if facts[key] is not None
    ]
    if "completion_tokens" in usage:
        tokens = f"{usage.get('prompt_tokens', '?')} + {usage['completion_tokens']} tokens"
        parts.append(tokens + (f" ({facts['finish_reason']})" if facts["finish_reason"] else ""))
    return "[" + ", ".join(parts) + "]"


def _ms(seconds: float | None) -> float | None:
    """Milliseconds with three digits that count."""
    return None if seconds is None else float(f"{seconds * 1000:.3g}")


def note(text: str) -> None:
    """Write a line about the request to standard error, at once."""
    print(f"kubectl pdserve: {text}", file=sys.stderr, flush=True)


def _temperature(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= MAX_TEMPERATURE:
        raise argparse.ArgumentTypeError(
            f"must be a number from 0 to {MAX_TEMPERATURE:g}, not {text!r}"
        )
    return number


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return number
