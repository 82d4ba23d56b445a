#!/usr/bin/env bash
# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Install what is missing, and nothing else.
#   setup.sh run        what the playbooks need: system packages, .venv, the path on which Ansible finds the collection
#   setup.sh dev        the same and what tests and gates need
#   setup.sh fleet      what the tests' fleet needs, and no venv
#   setup.sh vm         what dev installs, and a virtual machine with Debian's kernel for the fleet
#   setup.sh importer   the Galaxy importer in a venv of its own
#   setup.sh molecule   molecule in a venv of its own
#   setup.sh picture    what dev installs, and a browser, graphviz and mermaid for the tests of pictures
# PYTHON names the interpreter of the venv; it must be the system's, since the BPF bindings are its packages.
set -euo pipefail
profile=${1:?usage: setup.sh run|dev|fleet|vm|importer|molecule|picture}
PYTHON=${PYTHON:-/usr/bin/python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd "$root"

die() {
  printf 'setup: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -n env DEBIAN_FRONTEND=noninteractive "$@"
  else
    die "needs root (or sudo) to run: $*"
  fi
}

# Names in bindep.txt for platform $1 (dpkg or rpm); with $2 = dev those of the test profile too, with $2 = picture or vm those of that profile besides.
packages() {
  awk -v platform="$1" -v profile="$2" '
    /^#/ || NF == 0 { next }
    {
      name = $1; tags = $0; sub(/^[^ ]+ */, "", tags); gsub(/[][]/, "", tags)
      if (tags ~ /platform:/ && tags !~ "platform:" platform "( |$)") next
      if (tags ~ /(^| )test( |$)/ && profile == "run") next
      if (tags ~ /(^| )picture( |$)/ && profile != "picture") next
      if (tags ~ /(^| )vm( |$)/ && profile != "vm") next
      print name
    }' bindep.txt
}

system_packages() {
  local wanted missing
  if ! command -v apt-get >/dev/null; then
    mapfile -t wanted < <(packages rpm "$1")
    command -v rpm >/dev/null || die "this system has neither apt nor rpm; install by hand what bindep.txt names"
    missing=$(rpm -q "${wanted[@]}" | sed -n 's/^package \(.*\) is not installed$/\1/p' | tr '\n' ' ') || true
    [ -z "$missing" ] || die "missing packages, install them first: $missing"
    return
  fi
  mapfile -t wanted < <(packages dpkg "$1")
  missing=$(comm -23 <(printf '%s\n' "${wanted[@]}" | sort) <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^installed //p' | sort))
  [ -n "$missing" ] || return 0
  printf 'setup: installing %s\n' "$(echo "$missing" | tr '\n' ' ')"
  export DEBIAN_FRONTEND=noninteractive
  local apt=(apt-get -qq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0) log
  log=$(as_root "${apt[@]}" update </dev/null 2>&1) || die "apt-get update: $log"
  # shellcheck disable=SC2086  # one word a package
  log=$(as_root "${apt[@]}" install -y --no-install-recommends $missing </dev/null 2>&1) || die "apt-get install: $log"
}

# Prometheus and promtool into the venv $1: the programs alone, since their package starts a service.
prometheus() {
  [ -x "$1/bin/promtool" ] && [ -x "$1/bin/prometheus" ] && return
  command -v apt-get >/dev/null || die "this system has no apt; put prometheus and promtool into $1/bin by hand"
  local work log
  work=$(mktemp -d)
  printf 'setup: fetching prometheus into %s\n' "${1#"$root"/}"
  log=$(cd "$work" && { apt-get -qq download prometheus || { as_root apt-get -qq update && apt-get -qq download prometheus; }; } </dev/null 2>&1) ||
    die "apt-get download prometheus: $log"
  dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/prometheus ./usr/bin/promtool
  mv "$work"/usr/bin/prometheus "$work"/usr/bin/promtool "$1/bin/"
  rm -rf "$work"
}

# Bring the venv $1 in line with the requirement files $2...; $venv_flags go to its creation.
# The stamp inside holds a digest of all that goes in, and the path (a moved venv does not work).
venv() {
  local dir=$1 stamp want version
  shift
  version=$("$PYTHON" -V 2>&1) || die "cannot run $PYTHON: give the system's Python, 3.11 or newer, as PYTHON=/path/to/python3"
  stamp=$dir/.setup-$profile
  want=$(cat "$@" tests/tools/setup.sh | sha256sum | cut -d' ' -f1)" $root $version $PYTHON"
  if [ -x "$dir/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
    return
  fi
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PYTHON is $version; 3.11 or newer is needed: give it as PYTHON=/path/to/python3"
  if [ "$(cat "$dir/.root" 2>/dev/null)" != "$root $PYTHON" ] || ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$dir"
    # shellcheck disable=SC2086  # flags are words
    "$PYTHON" -m venv ${venv_flags:-} "$dir"
    printf '%s\n' "$root $PYTHON" >"$dir/.root"
  fi
  printf 'setup: installing %s into %s\n' "$*" "${dir#"$root"/}"
  local files=()
  for file in "$@"; do
    case $file in requirements*) files+=(-r "$file") ;; esac
  done
  "$dir/bin/python" -m pip install -q --no-input --disable-pip-version-check --retries 5 "${files[@]}" </dev/null
  printf '%s\n' "$want" >"$stamp"
}

# OpenSSH's server and sudo into $1, for the hosts of the tests' fleet: files alone, since the first one's package starts a service.
servers() {
  [ -e "$1/.complete" ] && return
  local work log apt package directory wanted=()
  [ -x /usr/sbin/sshd ] || wanted+=(openssh-server)
  command -v sudo >/dev/null || wanted+=(sudo)
  rm -rf "$1"
  mkdir -p "$1"
  if [ "${#wanted[@]}" -gt 0 ]; then
    command -v apt-get >/dev/null || die "this system has no apt; install ${wanted[*]} by hand"
    printf 'setup: fetching %s into %s\n' "${wanted[*]}" "${1#"$root"/}"
    work=$(mktemp -d)
    mkdir "$work/partial" "$work/files"
    apt=(apt-get -qq -y -o DPkg::Lock::Timeout=300 -o APT::Sandbox::User=root -o Dir::Cache::archives="$work")
    apt+=(install --download-only --no-install-recommends "${wanted[@]}")
    log=$({ as_root "${apt[@]}" || { as_root apt-get -qq update && as_root "${apt[@]}"; }; } </dev/null 2>&1) || die "apt-get install --download-only ${wanted[*]}: $log"
    for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/files"; done
    # on the hosts /lib and the like are symbolic links into /usr
    for directory in bin lib lib64 sbin; do
      [ -d "$work/files/$directory" ] || continue
      mkdir -p "$work/files/usr/$directory"
      cp -a "$work/files/$directory/." "$work/files/usr/$directory/"
    done
    cp -a "$work/files/usr" "$work/files/etc" "$1/"
    as_root rm -rf "$work"
  fi
  touch "$1/.complete"
}

# Debian's kernel into $1, to boot it in a virtual machine; nothing is installed on this machine.
kernel() {
  local work log package
  compgen -G "$1/boot/vmlinuz-*" >/dev/null && return
  command -v apt-get >/dev/null || die "this system has no apt; unpack a kernel into $1 by hand"
  work=$(mktemp -d)
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}')
  printf 'setup: fetching %s into %s\n' "$package" "${1#"$root"/}"
  log=$(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" </dev/null 2>&1) || die "apt-get download $package: $log"
  rm -rf "$1"
  mkdir -p "$1"
  dpkg-deb -x "$work"/linux-image-*.deb "$1"
  depmod -b "$1" "$(ls "$1/lib/modules")"
  rm -rf "$work" "${1:?}/usr/share"
}

# mermaid's parser, in a directory of its own below .venv; the version is that of the grammar that the tests mean.
mermaid() {
  local version=11.12.0
  [ -e "$root/.venv/mermaid/node_modules/mermaid/dist/mermaid.min.js" ] && return
  command -v npm >/dev/null || die "npm is missing: install nodejs and npm"
  printf 'setup: installing mermaid into .venv/mermaid\n'
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$root/.venv/mermaid" "mermaid@$version" </dev/null >/dev/null
}

mkdir -p .ansible/collections/ansible_collections/ebpf
exec 9>.ansible/.setup.lock
flock 9

case $profile in
  run)
    system_packages run
    venv_flags=--system-site-packages venv "$root/.venv" requirements.txt constraints.txt
    ;;
  dev)
    system_packages dev
    venv_flags=--system-site-packages venv "$root/.venv" requirements-dev.txt requirements.txt constraints.txt
    prometheus "$root/.venv"
    servers "$root/.ansible/fleet/servers"
    ;;
  fleet)
    system_packages dev
    servers "$root/.ansible/fleet/servers"
    ;;
  vm)
    system_packages vm
    venv_flags=--system-site-packages venv "$root/.venv" requirements-dev.txt requirements.txt constraints.txt
    servers "$root/.ansible/fleet/servers"
    kernel "$root/.ansible/fleet/kernel"
    ;;
  picture)
    system_packages picture
    venv_flags=--system-site-packages venv "$root/.venv" requirements-picture.txt requirements-dev.txt requirements.txt constraints.txt
    mermaid
    ;;
  importer)
    venv "$root/.venv/importer" requirements-importer.txt
    ;;
  molecule)
    venv "$root/.venv/molecule" requirements-molecule.txt requirements.txt constraints.txt
    ;;
  *) die "unknown profile $profile" ;;
esac

# ansible.cfg looks here, so the playbooks run as typed in a clone of any name.
link=.ansible/collections/ansible_collections/ebpf/conntrack
if [ "$(readlink "$link" 2>/dev/null)" != ../../../.. ]; then
  ln -sfn ../../../.. "$link"
fi
