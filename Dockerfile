# Both images must be Debian-based, with the same Python at the same path: the venv is copied.
# The build image needs a shell and apt; the runtime image needs neither, so it can be distroless.
# Empty: the pinned one.
ARG BUILD_IMAGE=
ARG RUNTIME_IMAGE=

# A stage of its own, because Dependabot updates FROM, not ARG. Builders skip it if both arguments
# name other images. The defaults are in FROM, because older versions of buildah do not find a stage
# that the default of an ARG names.
FROM python:3.13-slim@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS pinned

FROM ${BUILD_IMAGE:-pinned} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1

# Installs Python only if the image has none. Unpinned, because Debian keeps only the newest build.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils \
 && (command -v python3 || apt-get install -y --no-install-recommends python3-venv) \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /build
# Dependencies first: this layer is reused until a lock changes. Wheels only, because there is no
# compiler. The build backend (setuptools) comes from the dev lock, with its hashes.
# The venv refers to the resolved interpreter, because a runtime image may lack the python3 symlink.
COPY requirements.lock requirements-dev.lock ./
RUN python3 -m venv /build/venv \
 && "$(readlink -f "$(command -v python3)")" -m venv --without-pip /app \
 && sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock > build.lock \
 && venv/bin/pip install --require-hashes --only-binary :all: -r build.lock \
 && venv/bin/pip --python /app/bin/python install \
      --no-compile --require-hashes --only-binary :all: -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
# Debug symbols and C sources are half of the wheels' size. Bytecode is compiled here, unchecked:
# the code in an image does not change, and this keeps file times out of the bytecode. -o 2
# (PYTHONOPTIMIZE below) drops docstrings, which saves 1.6 MiB of memory.
RUN venv/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
 && venv/bin/pip --python /app/bin/python install \
      --no-compile --no-deps --no-index --find-links dist trace-sidecar \
 && find /app/lib -name '*.so' -exec strip --strip-debug {} + \
 && find /app/lib -regex '.*\.\(c\|h\|hash\|pxd\|pxi\|pyi\|pyx\)' -delete \
 && /app/bin/python -m compileall -q -o 2 --invalidation-mode unchecked-hash /app/lib


FROM ${RUNTIME_IMAGE:-pinned}
# Some distroless images set another user.
USER 0:0
COPY --from=build /app /app
# Set before Python runs here, so that it writes the bytecode that the sidecar loads.
ENV PYTHONOPTIMIZE=2
# Exec form: there may be no shell. The imports test the image, and write bytecode for the standard
# library modules that the sidecar uses (Python images ship none). Then pip is removed, if present.
RUN ["/app/bin/python", "-c", "\
import pathlib, shutil, sys, sidecar.cli, sidecar.listener.pass_through, sidecar.operate.replay, sidecar.spool.writer; \
found = pathlib.Path(sys.base_prefix).glob; \
trees = [*found('lib/python3.*/ensurepip'), *found('lib/python3.*/*-packages/pip*')]; \
[shutil.rmtree(tree) for tree in trees]; \
[program.unlink() for program in found('bin/pip*')]"]

# glibc's own allocator: sidecar/process/memory.py returns memory after a burst, and jemalloc held 1 to
# 3 MiB more. frozenlist's C extension would load a 1 MiB C++ library; no span needs it.
ENV PATH=/app/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FROZENLIST_NO_EXTENSIONS=1

# Last, so that a new revision does not rebuild any layer.
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="trace-sidecar" \
      org.opencontainers.image.description="Forwards span events from the agents of a pod to Agentex and SGP" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"

# Numeric, so that Kubernetes' runAsNonRoot can check it.
USER 65532:65532
WORKDIR /app
EXPOSE 8318 9318
STOPSIGNAL SIGTERM
ENTRYPOINT ["sidecar"]
CMD ["run"]
