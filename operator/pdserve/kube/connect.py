"""Open a `KubeClient`: where the API server is, and as whom to speak to it.

The only module, with `transport`, that loads the Kubernetes client library.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import list_kube_config_contexts, load_kube_config

from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.ratelimit import TokenBucket
from pdserve.kube.transport import HttpTransport, refuse_redirects

DEFAULT_RATE = 100.0
DEFAULT_BURST = 200
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


_MALFORMED = (OSError, ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError)
"""What the library raises for contents of a kubeconfig that it does not expect."""


class ConnectError(Exception):
    """No usable configuration; the message says where it was looked for."""


async def connect(
    kubeconfig: str | os.PathLike[str] | None = None,
    *,
    context: str | None = None,
    registry: Registry | None = None,
    rate: float = DEFAULT_RATE,
    burst: int = DEFAULT_BURST,
    user_agent: str = "pdserve",
) -> KubeClient:
    """A client for the cluster given by, in this order:

    1. `kubeconfig`, if not None; 2. `$KUBECONFIG`; 3. the pod's service account;
    4. `~/.kube/config`.

    Nothing is sent yet. `rate` and `burst` are requests per second.

    Raises:
        ConnectError: nothing usable found.
    """
    api = await api_client(kubeconfig, context=context, user_agent=user_agent)
    transport = HttpTransport(api, registry or Registry())
    return KubeClient(transport, bucket=TokenBucket(rate, burst))


async def api_client(
    kubeconfig: str | os.PathLike[str] | None = None,
    *,
    context: str | None = None,
    user_agent: str = "pdserve",
) -> ApiClient:
    """The library's client that `connect` builds on, for what is no API object (a pod's proxy).

    Raises:
        ConnectError: nothing usable found.
    """
    configuration = Configuration()
    try:
        await _configure(configuration, kubeconfig, context)
        # As Go's clients: never through a proxy to this machine.
        configuration.client_session_kwargs = {
            "trust_env": not _is_loopback(configuration.host),
            "middlewares": (refuse_redirects,),
        }
        api = ApiClient(configuration)
    except (ConfigException, *_MALFORMED) as error:
        raise ConnectError(f"Kubernetes configuration is not usable: {error}") from error
    api.user_agent = user_agent
    return api


def pod_namespace(default: str = "default") -> str:
    """The namespace this process runs in, as a pod; else `default`."""
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or default
    except OSError:
        return default


def default_namespace(
    kubeconfig: str | os.PathLike[str] | None = None, *, context: str | None = None
) -> str:
    """The namespace that a command means which names none, as kubectl: the context's.

    Where `connect` would take the pod's service account: the pod's. Else "default".

    Raises:
        ConnectError: nothing usable found.
    """
    try:
        files = _kubeconfig_files(kubeconfig)
        if files is None:
            return pod_namespace()
        contexts, current = list_kube_config_contexts(files)
        if context is not None:
            current = next(c for c in contexts if c["name"] == context)
        return str(current["context"].get("namespace") or "default")
    except StopIteration:
        raise ConnectError(f"{files} has no context {context!r}") from None
    except (ConfigException, *_MALFORMED) as error:
        raise ConnectError(f"Kubernetes configuration is not usable: {error}") from error


async def _configure(
    configuration: Configuration, kubeconfig: str | os.PathLike[str] | None, context: str | None
) -> None:
    files = _kubeconfig_files(kubeconfig)
    if files is None:
        load_incluster_config(client_configuration=configuration)
        return
    loader = await load_kube_config(
        files,
        context=context,
        client_configuration=configuration,
        persist_config=False,
    )
    if hasattr(loader, "exec_plugin_expiry") or loader.provider is not None:

        async def refresh(target: Configuration) -> None:
            await loader.load_and_set(target)

        # Tokens of exec plugins and OIDC expire; the loader knows when and asks again then.
        configuration.refresh_api_key_hook = refresh


def _kubeconfig_files(kubeconfig: str | os.PathLike[str] | None) -> str | None:
    """Which files to read; None: the pod's service account."""
    chosen = os.fspath(kubeconfig) if kubeconfig is not None else os.environ.get("KUBECONFIG", "")
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists()
    if not chosen and in_pod:
        return None
    files = chosen or str(Path.home() / ".kube" / "config")
    if not any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file):
        where = "is not a file" if chosen else "is not there, and this is not a pod"
        raise ConfigException(f"{files} {where}")
    return files


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
