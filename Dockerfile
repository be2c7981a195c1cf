# The three images of pdserve, one target each: operator, gateway, engine.
# `make images` builds them and says where their base and their wheels come from; docs/images.md
# explains. By hand:  docker build --target engine -t pdserve/engine:0.1.0 .
#
# Every step is a Python program without a shell, so that bases without one do as well. What ends
# up in an image: the base less its installers, one virtual environment, its parts of pdserve.

ARG BASE_IMAGE=python:3.12-slim

# What is shared by the three: the base, without pip, and quick to start on a read-only root.
FROM ${BASE_IMAGE} AS runtime
USER 0:0
COPY hack/images/install.py /tmp/
RUN ["python3", "/tmp/install.py", "base"]
ENV PATH=/opt/pdserve/bin:${PATH} \
    HOME=/tmp \
    PDSERVE_BIND=:: \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/pdserve

FROM ${BASE_IMAGE} AS code
USER 0:0
COPY hack/images/install.py /build/
COPY operator/pdserve /opt/pdserve/app/pdserve
COPY LICENSE /opt/pdserve/app/

# Only what pyproject.toml says of dependencies, so that its other lines do not void the cache.
FROM ${BASE_IMAGE} AS requirements
USER 0:0
COPY hack/images/install.py pyproject.toml /build/
RUN ["python3", "/build/install.py", "requirements"]

FROM ${BASE_IMAGE} AS build
USER 0:0
COPY hack/images/wheelhouse /build/wheelhouse
COPY hack/images/install.py hack/constraints.txt hack/constraints-hashed.txt /build/
# index, wheelhouse, or auto: the wheelhouse if there are wheels in it.
ARG WHEELS=auto
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
# Arguments end with their stage, in some builders; this one is continued three times.
ENV WHEELS=${WHEELS} \
    PIP_INDEX_URL=${PIP_INDEX_URL} \
    PIP_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL} \
    PIP_TRUSTED_HOST=${PIP_TRUSTED_HOST}

FROM code AS operator-code
RUN ["python3", "/build/install.py", "code", "operator"]

FROM build AS operator-dependencies
COPY --from=requirements /build/operator.txt /build/
RUN ["python3", "/build/install.py", "dependencies", "operator"]

FROM runtime AS operator
COPY --from=operator-dependencies /opt/pdserve /opt/pdserve
COPY --from=operator-code /opt/pdserve/app /opt/pdserve/app
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/opt/pdserve/bin/python", "-m", "pdserve.controllers"]
CMD []
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pdserve operator" \
      org.opencontainers.image.description="Places, links and scales prefill and decode instances on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# C extensions where build.py could make some for this base; else the code runs interpreted.
FROM code AS gateway-code
COPY hack/images/compiled /build/compiled
RUN ["python3", "/build/install.py", "code", "gateway"]

FROM build AS gateway-dependencies
COPY --from=requirements /build/gateway.txt /build/
RUN ["python3", "/build/install.py", "dependencies", "gateway"]

# Also holds the load generator: python -m pdserve.cli.load
FROM runtime AS gateway
COPY --from=gateway-dependencies /opt/pdserve /opt/pdserve
COPY --from=gateway-code /opt/pdserve/app /opt/pdserve/app
USER 65532:65532
EXPOSE 8000 9090
ENTRYPOINT ["/opt/pdserve/bin/python", "-m", "pdserve.gateway"]
CMD []
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pdserve gateway" \
      org.opencontainers.image.description="OpenAI API in front of prefill and decode instances" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM code AS engine-code
RUN ["python3", "/build/install.py", "code", "engine"]

FROM build AS engine-dependencies
COPY --from=requirements /build/engine.txt /build/
RUN ["python3", "/build/install.py", "dependencies", "engine"]

# The built-in weights are part of the package.
FROM runtime AS engine
COPY --from=engine-dependencies /opt/pdserve /opt/pdserve
COPY --from=engine-code /opt/pdserve/app /opt/pdserve/app
USER 65532:65532
EXPOSE 8000 5600
ENTRYPOINT ["/opt/pdserve/bin/python", "-m", "pdserve.refengine"]
CMD []
ARG BASE_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pdserve reference engine" \
      org.opencontainers.image.description="A small Llama computed with numpy, split into prefill and decode" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
