#!/bin/sh
# Installs redis-server when it is missing. The tests and `ferry dev` run it as a
# private child process, so no service is started and none stays running.
set -eu

say() { printf 'install-redis: %s\n' "$*"; }
die() {
	printf 'install-redis: %s\n' "$*" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# as_root runs a command as root, without ever asking for a password.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif have sudo && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		die "redis-server is missing and this user is not root: run \"sudo apt-get install redis-server\""
	fi
}

policy=/usr/sbin/policy-rc.d # Debian's switch: exit code 101 forbids to start services

# with_apt installs quietly. Its service must not start: it would hold port 6379
# and run beside the private child for nothing.
with_apt() {
	as_root true
	if [ ! -e "$policy" ]; then
		trap 'as_root rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
		as_root chmod 755 "$policy"
	fi
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq update >/dev/null ||
		die "apt-get update did not work: check the network, then run this again"
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq -y --no-install-recommends install redis-server >/dev/null ||
		die "apt-get could not install redis-server: install Redis 6.2 or later by hand"
}

if have redis-server; then
	say "redis-server is already there: $(command -v redis-server)"
	exit 0
fi
if have apt-get; then
	with_apt
elif have brew; then
	brew install --quiet redis || die "brew could not install redis: install Redis 6.2 or later by hand"
else
	die "redis-server is missing: install Redis 6.2 or later with your package manager (e.g. \"dnf install redis\", \"apk add redis\") so that redis-server is in PATH"
fi
have redis-server || die "redis was installed, but redis-server is not in PATH"
say "installed $(redis-server --version)"
