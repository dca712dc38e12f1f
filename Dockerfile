# Both images must hold the same Python at the same path, on Debian: a venv is copied.
ARG BUILD_IMAGE=python:3.13-slim
ARG RUNTIME_IMAGE=python:3.13-slim

FROM ${BUILD_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

# Copied to one path for every architecture. Unpinned: Debian keeps only the newest build.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libjemalloc2 \
 && cp -L /usr/lib/*/libjemalloc.so.2 /usr/local/lib/libjemalloc.so.2 \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /build
# Dependencies first: this layer is reused until a lock changes. Wheels only: there is no
# compiler. The build backend (setuptools) is taken from the dev lock, with its hashes.
COPY requirements.lock requirements-dev.lock ./
RUN python -m venv --without-pip /app \
 && pip --python /app/bin/python install --no-compile --require-hashes --only-binary :all: -r requirements.lock \
 && sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock > build.lock \
 && pip install --require-hashes --only-binary :all: -r build.lock

COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
# Bytecode is compiled here, unchecked: the code in an image does not change.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && pip --python /app/bin/python install --no-compile --no-deps --no-index dist/*.whl \
 && /app/bin/python -m compileall -q --invalidation-mode unchecked-hash /app/lib


FROM ${RUNTIME_IMAGE}
COPY --from=build /usr/local/lib/libjemalloc.so.2 /usr/local/lib/
COPY --from=build /app /app
# The import proves the image and leaves bytecode for the standard library modules that the
# sidecar uses (the official images ship none). Then pip goes.
RUN /app/bin/python -c 'import sidecar.cli' \
 && /usr/local/bin/python -m pip uninstall -y --quiet --root-user-action ignore pip \
 && rm -rf /usr/local/lib/python3.*/ensurepip

# jemalloc gives memory back soon after a burst of traces; two arenas do for one event loop.
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    LD_PRELOAD=/usr/local/lib/libjemalloc.so.2 \
    MALLOC_CONF=background_thread:true,dirty_decay_ms:2000,muzzy_decay_ms:0,narenas:2

# Last, so that a new revision rebuilds nothing.
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="trace-sidecar" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"

# A number, so that Kubernetes' runAsNonRoot can check it.
USER 65532:65532
WORKDIR /app
EXPOSE 8318 9318
STOPSIGNAL SIGTERM
ENTRYPOINT ["sidecar"]
CMD ["run"]
