#!/usr/bin/env bash
# Install what NCCL needs to use AWS's Elastic Fabric Adapter: libfabric and the plugin aws-ofi-nccl, by AWS's own installer.
#
#   cluster/gpu/install_efa.sh 1.43.2    a release of the installer
#   cluster/gpu/install_efa.sh ""        nothing is installed
#
# For images: the kernel's module belongs to the host. Needs curl and, within apt, root.
set -euo pipefail

release=$1
[ -n "$release" ] || exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
archive=aws-efa-installer-$release.tar.gz
curl --fail --silent --show-error --location "https://efa-installer.amazonaws.com/$archive" -o "$folder/$archive"
tar -xzf "$folder/$archive" -C "$folder"
apt-get update
(cd "$folder/aws-efa-installer" && ./efa_installer.sh --yes --skip-kmod --skip-limit-conf --no-verify)
rm -rf /var/lib/apt/lists/*
find /opt/amazon -name 'lib*.so*' -printf '%h\n' | sort -u > /etc/ld.so.conf.d/efa.conf  # where NCCL's dlopen looks
ldconfig
ldconfig -p | grep -q libnccl-net || { echo "install_efa.sh: release $release brought no libnccl-net: take a newer one" >&2; exit 1; }
