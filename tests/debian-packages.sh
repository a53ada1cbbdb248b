#!/usr/bin/env bash
# Installs the Debian packages that some tests want, where this is Debian and we are root.
# Elsewhere those tests skip and name the package.
packages=(chromium dataset-fashion-mnist nginx-light)
missing=()
for package in "${packages[@]}"; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ "${#missing[@]}" -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
      --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 \
    || echo "could not install ${missing[*]}; tests that need it will skip"
fi
exit 0
