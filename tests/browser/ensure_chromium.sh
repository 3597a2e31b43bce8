#!/usr/bin/env bash
# The browser tests drive a real Chromium: the one INITSCOPE_CHROMIUM names, or one on the PATH, or Debian's, installed here.
set -euo pipefail
for candidate in "${INITSCOPE_CHROMIUM:-}" chromium chromium-browser google-chrome; do
  if [ -n "$candidate" ] && command -v "$candidate" >/dev/null; then exit 0; fi
done
if command -v apt-get >/dev/null; then
  as_root=; [ "$(id -u)" -eq 0 ] || as_root=sudo
  echo "installing Chromium for the browser tests" >&2
  $as_root apt-get update -qq && $as_root apt-get install -y -qq chromium >/dev/null && exit 0
fi
echo "the browser tests need Chromium: install it, or set INITSCOPE_CHROMIUM to its path" >&2
exit 1
