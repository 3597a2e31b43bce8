#!/usr/bin/env bash
# What the tests use of the system: a Chromium (the one INITSCOPE_CHROMIUM names, one on the PATH, or Debian's, installed here; best
# its headless shell, which is Chromium without windows: the same pages for two thirds of the processor's time), and
# the story's data, Debian's package of FashionMNIST. Without the data the tests that read it are skipped.
set -euo pipefail

install() {
  command -v apt-get >/dev/null || return 1
  as_root=; [ "$(id -u)" -eq 0 ] || as_root=sudo
  echo "installing $1 for the tests" >&2
  $as_root apt-get update -qq && $as_root apt-get install -y -qq "$1" >/dev/null
}

has_chromium() {
  for candidate in "${INITSCOPE_CHROMIUM:-}" chromium-headless-shell chromium chromium-browser google-chrome; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null; then return 0; fi
  done
  return 1
}

if [ ! -d /usr/share/datasets/fashion-mnist ]; then
  install dataset-fashion-mnist || echo "no FashionMNIST here: the tests on the story's own data are skipped" >&2
fi
has_chromium || install chromium-headless-shell || install chromium || { echo "the browser tests need Chromium: install it, or set INITSCOPE_CHROMIUM to its path" >&2; exit 1; }
