#!/bin/sh
# Installs redis-server when it is missing, and a server that knows WAITAOF (Valkey,
# or Redis from 7.2 on) when it can. The tests and `ferry dev` run them as private
# child processes, so no service is started and none stays running.
set -eu

say() { printf 'install-redis: %s\n' "$*"; }
die() {
	printf 'install-redis: %s\n' "$*" >&2
	exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# as_root runs a command as root, without ever asking for a password, or fails.
as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif have sudo && sudo -n true 2>/dev/null; then
		sudo -n "$@"
	else
		return 1
	fi
}

policy=/usr/sbin/policy-rc.d # Debian's switch: exit code 101 forbids to start services
scratch=                     # a private package source, see with_backports
planted=

clean_up() {
	[ -z "$scratch" ] || rm -rf "$scratch"
	[ -z "$planted" ] || as_root rm -f "$policy"
}
trap clean_up EXIT

# no_services keeps what is installed from being started: it would hold port 6379
# and run beside the private child for nothing.
no_services() {
	[ ! -e "$policy" ] || return 0
	planted=yes
	printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
	as_root chmod 755 "$policy"
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >/dev/null; }

install_redis() {
	if have apt-get; then
		as_root true || die "redis-server is missing and this user is not root: run \"sudo apt-get install redis-server\""
		no_services
		apt update || die "apt-get update did not work: check the network, then run this again"
		apt -y --no-install-recommends install redis-server ||
			die "apt-get could not install redis-server: install Redis 6.2 or later by hand"
	elif have brew; then
		brew install --quiet redis || die "brew could not install redis: install Redis 6.2 or later by hand"
	else
		die "redis-server is missing: install Redis 6.2 or later with your package manager (e.g. \"dnf install redis\", \"apk add redis\") so that redis-server is in PATH"
	fi
	have redis-server || die "redis was installed, but redis-server is not in PATH"
	say "installed $(redis-server --version)"
}

# knows_waitaof reads "Redis server v=7.0.15 sha=..." for 7.2 or later.
knows_waitaof() {
	redis-server --version | awk '{ split(substr($3, 3), v, "."); exit !(v[1] > 7 || v[1] == 7 && v[2] >= 2) }'
}

# with_backports runs apt-get on Debian's backports alone, by lists of its own: the
# machine's sources stay as they are.
with_backports() {
	apt -o "Dir::Etc::sourcelist=$scratch/sources.list" -o Dir::Etc::sourceparts=/dev/null \
		-o "Dir::State::lists=$scratch/lists" "$@"
}

# install_valkey fails where there is none to be had.
install_valkey() {
	have apt-get && as_root true || return 1
	no_services
	if apt update && apt -y --no-install-recommends install valkey-server 2>/dev/null; then
		return 0
	fi
	[ -r /etc/os-release ] || return 1
	# shellcheck source=/dev/null
	release=$(. /etc/os-release && [ "$ID" = debian ] && printf %s "$VERSION_CODENAME") || return 1
	# The mirror that the machine uses has the backports too.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $release" | head -n 1)
	[ -n "$mirror" ] || return 1
	scratch=$(mktemp -d)
	chmod 755 "$scratch" # apt's own user reads it
	mkdir "$scratch/lists"
	printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' \
		"$mirror" "$release" >"$scratch/sources.list"
	with_backports update && with_backports -y --no-install-recommends install valkey-server
}

if have redis-server; then
	say "redis-server is already there: $(command -v redis-server)"
else
	install_redis
fi
if have valkey-server; then
	say "valkey-server is already there: $(command -v valkey-server)"
elif knows_waitaof; then
	say "redis-server knows WAITAOF: valkey-server is not needed"
elif install_valkey; then
	say "installed $(valkey-server --version)"
else
	say "no server with WAITAOF could be installed: tests of strict durability are skipped, but fail where CI=true"
fi
