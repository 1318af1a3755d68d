#!/bin/sh
# Writes what a package has beside the program: its manual page, and completions for shells.
#
#   packaging/documents.sh PROGRAM DIRECTORY
set -eu
program=$1
to=$2
mkdir -p "$to"
"$program" man >"$to/likewise.1"
"$program" completions bash >"$to/likewise.bash"
"$program" completions zsh >"$to/_likewise"
"$program" completions fish >"$to/likewise.fish"
