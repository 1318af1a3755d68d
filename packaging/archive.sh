#!/bin/sh
# Makes the archive that install.sh installs, with its checksum beside it.
#
#   packaging/archive.sh PROGRAM DIRECTORY
#
# The archive is called likewise-VERSION-SYSTEM-MACHINE.tar.gz, by the program's own version and this machine's names.
set -eu
here=$(dirname "$0")
program=$1
to=$2
version=$("$program" --version | cut -d ' ' -f 2)
name=likewise-$version-$(uname -s | tr '[:upper:]' '[:lower:]')-$(uname -m)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$to" "$work/$name/systemd"
cp "$program" "$work/$name/likewise"
cp "$here/../LICENSE" "$here/../README.md" "$work/$name/"
cp "$here/likewise.service" "$here/likewise.socket" "$here/likewise.sysusers" "$here/likewise.default" \
  "$here/likewise-backup.service" "$here/likewise-backup.timer" "$work/$name/systemd/"
"$here/documents.sh" "$program" "$work/$name/documents"
tar -C "$work" -czf "$to/$name.tar.gz" "$name"
# The newest version has a name that doesn't change.
(cd "$to" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256" && printf '%s\n' "$version" >latest)
echo "$to/$name.tar.gz"
