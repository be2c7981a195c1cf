#!/usr/bin/env bash
# Makes a base image with Python from Debian (or Ubuntu) packages, where none can be pulled, and
# prints its name. Made once: the name changes with this file and the suite. `docker rmi` it to
# take newer packages.
#
#   hack/images/debian-base.sh            make it unless the engine has it, print its name
#   hack/images/debian-base.sh --name     only print the name
#   SUITE=trixie hack/images/debian-base.sh
#
# ARCH    amd64, arm64, ...; default: this machine's. Another one needs an emulator (qemu-user-static)
# SUITE   release to take packages of; default: this machine's, else trixie
# MIRROR  where from; default: what this machine's apt uses (with its proxies and keys)
# TOOL    docker (default) or podman
#
# What is left out: package manager, documentation (but licences), translations, Perl's modules.
set -euo pipefail
say() { echo "debian-base: $*" >&2; }
fail() { say "$*"; exit 1; }
usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0"; }

os() { (. /etc/os-release 2> /dev/null && echo "${!1:-}") || true; }

own_sources() { # files that say where apt takes the distribution itself from
  find /etc/apt/sources.list /etc/apt/sources.list.d/{debian,ubuntu}.sources -size +0 2> /dev/null || true
}
own_mirror() {
  own_sources | xargs -r grep -hE '^(URIs:|deb )' | grep -oE 'https?://[^ ]+' | head -n 1 || true
}

suite=${SUITE:-}
sources=()
case "$(os ID)" in
  debian | ubuntu)
    : "${suite:=$(os VERSION_CODENAME)}"
    if [ "$suite" = "$(os VERSION_CODENAME)" ] && [ -z "${MIRROR:-}" ]; then
      mapfile -t sources < <(own_sources)
    fi ;;
esac
: "${suite:=trixie}"
if [ ${#sources[@]} -eq 0 ]; then
  mirror=${MIRROR:-$(own_mirror)}
  sources=("deb ${mirror:-http://deb.debian.org/debian} $suite main")
fi
tool=${TOOL:-docker}
name=pdserve/debian-base:$suite${ARCH:+-$ARCH}-$( { echo "$suite"; cat "$0"; } | sha256sum | cut -c1-12)

case "${1:-}" in
  --name) echo "$name"; exit ;;
  --help | -h) usage; exit ;;
  ?*) usage >&2; exit 2 ;;
esac
if "$tool" image inspect "$name" > /dev/null 2>&1; then echo "$name"; exit; fi

if ! command -v mmdebstrap > /dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null \
    || fail "mmdebstrap is not installed: install it (apt install mmdebstrap), or set BASE_IMAGE to an image with Python >= 3.11"
  say "installing mmdebstrap"
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends mmdebstrap; } > /dev/null \
    || fail "mmdebstrap could not be installed (apt install mmdebstrap); or set BASE_IMAGE"
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "making $name from packages of $suite: about 30 s, once"
left_out=()
for path in doc/* man/* info/* locale/* lintian/*; do
  left_out+=("--dpkgopt=path-exclude=/usr/share/$path")
done
left_out+=("--dpkgopt=path-include=/usr/share/doc/*/copyright")
hooks=$(dirname "$(command -v mmdebstrap)")/../share/mmdebstrap/hooks
if ! mmdebstrap --quiet --variant=essential ${ARCH:+--architectures="$ARCH"} \
  --include=python3,ca-certificates,libstdc++6 "${left_out[@]}" \
  --hook-dir="$hooks/maybe-merged-usr" \
  --customize-hook='rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/etc/apt/sources.list*' \
  --customize-hook='find "$1"/var/log "$1"/var/cache "$1"/var/lib/apt -type f -delete' \
  "$suite" "$scratch/base.tar" "${sources[@]}" 2> "$scratch/log"; then
  sed 's/^/  | /' "$scratch/log" | tail -n 15 >&2
  fail "mmdebstrap failed (above). Is a Debian mirror reachable? Else set BASE_IMAGE to an image with Python >= 3.11"
fi
"$tool" import ${ARCH:+--platform "linux/$ARCH"} --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
  --change 'CMD ["python3"]' "$scratch/base.tar" "$name" > /dev/null
echo "$name"
