# make demo, make test: all that a newcomer needs. The rest is for those who install or develop.

prefix ?= /usr/local
sysconfdir ?= /etc
CARGO ?= cargo
PROGRAM = ganeti-instance-debootstrap
OS_DIR = $(prefix)/share/ganeti/os/debootstrap
SHARE_DIR = $(prefix)/share/$(PROGRAM)
CONF_DIR = $(sysconfdir)/ganeti/instance-debootstrap
# All of hooks/ that can be switched on.
HOOKS = $(filter-out hooks/README,$(wildcard hooks/*))
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
# What is shipped is what is tested. The tests end with cargo, whose process is that of this shell.
RUN_TESTS = TESTS_PARENT=$$$$ exec $(CARGO) test --release --locked --test runner --
RUN_LOCK = $(TARGET_DIR)/tmp/runner.lock
# Before anything is built: root, and no other run, whose programs would be replaced.
MAY_TEST = @[ "$$(id -u)" = 0 ] || { echo "make $@: the tests attach loop devices and mount: run as root" >&2; exit 1; }; \
  [ ! -e $(RUN_LOCK) ] || flock --nonblock $(RUN_LOCK) true || \
  { echo "another run of this checkout goes on ($$(cat $(RUN_LOCK)))" >&2; exit 1; }

all: build

# BUILT says that the program is there: `make deb` packages what was built outside of its copy.
build:
	$(if $(BUILT),,$(CARGO) build --release --locked)

# Paths inside DESTDIR; the links are relative, so that the tree can lie anywhere.
install: build
	install -D -m 0755 $(TARGET_DIR)/release/$(PROGRAM) $(DESTDIR)$(prefix)/sbin/$(PROGRAM)
	install -d $(DESTDIR)$(OS_DIR) $(DESTDIR)$(SHARE_DIR)
	install -m 0644 os-def/ganeti_api_version os-def/parameters.list os-def/common.sh $(DESTDIR)$(OS_DIR)/
	for verb in create import export rename verify; do \
	  ln -sfn ../../../../sbin/$(PROGRAM) $(DESTDIR)$(OS_DIR)/$$verb; done
	ln -sfn $(CONF_DIR)/variants.list $(DESTDIR)$(OS_DIR)/variants.list
	install -m 0644 os-def/config.toml os-def/variants.list $(DESTDIR)$(SHARE_DIR)/
	install -d $(DESTDIR)$(CONF_DIR)/hooks $(DESTDIR)$(CONF_DIR)/variants
	install -d $(DESTDIR)/var/cache/$(PROGRAM)
	install -d $(DESTDIR)$(prefix)/share/doc/$(PROGRAM)/examples
	install -m 0755 $(HOOKS) $(DESTDIR)$(prefix)/share/doc/$(PROGRAM)/examples/
	install -m 0644 hooks/README $(DESTDIR)$(prefix)/share/doc/$(PROGRAM)/examples/
	@# Straight onto a node: what a package's postinst would do. Nothing that is there is replaced.
	if [ -z "$(DESTDIR)" ]; then \
	  [ -e $(sysconfdir)/default/$(PROGRAM) ] || [ -e $(CONF_DIR)/config.toml ] || \
	    install -m 0644 os-def/config.toml $(CONF_DIR)/; \
	  [ -e $(CONF_DIR)/variants.list ] || install -m 0644 os-def/variants.list $(CONF_DIR)/; fi

# A real Debian tree on a real partitioned disk, in demo.img.
demo:
	tests/install-tools demo
	$(CARGO) build --release --locked
	tests/demo $(TARGET_DIR)/release/$(PROGRAM)

# A change's answer in a minute, without root: format, lints, scripts, unit tests, settings, documents, verify, and which
# rooms import which. As root also one disk there and back.
check:
	tests/install-tools check
	$(MAKE) --no-print-directory scripts
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --lib --bins -- --deny warnings
	$(CARGO) test --quiet --locked --lib --bins --test checks -- --skip as_root
	@if [ "$$(id -u)" = 0 ]; then set -x; \
	  $(CARGO) test --quiet --locked --lib --test checks as_root -- --test-threads=1; \
	  else echo "NOT RUN without root: the tests in modules called as_root"; fi

# Everything, but of long series of combinations only a few; 12 minutes on two cores. One test:
# `make test TESTS=part_of_its_name`.
test:
	$(MAY_TEST)
	tests/install-tools test
	$(RUN_TESTS) $(if $(strip $(TESTS)),--named $(TESTS),test)

# All that is long, on top of `make test`. Some of it: `make test-full PARTS="boots xen"`.
test-full:
	$(MAY_TEST)
	tests/install-tools test
	$(RUN_TESTS) full $(PARTS)

# As much of it as ends within the hour that began at TESTS_BEGAN (seconds since 1970), in an order that changes from run to
# run; says what was not run.
test-parts:
	$(MAY_TEST)
	tests/install-tools test
	$(RUN_TESTS) parts

# What `make test` checks of all sources.
lint: scripts
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --release --locked --all-targets -- --deny warnings

scripts:
	shellcheck .ci/run benches/speed/by-hand tests/install-tools tests/demo tests/fuzz tests/machines/ganeti/cluster \
	  tests/upgrade/enter.sh tests/machines/xen/init tests/machines/xen/make-dom0 \
	  tests/upgrade/hooks/10-record tests/upgrade/hooks/20_second \
	  $(addprefix tests/upgrade/field/,beside kpartx read hooks/[0-9]* failing/*) debian/postinst debian/prerm debian/postrm $(HOOKS)

# Side by side with the predecessor of Debian's archive: `make bench CASES="export import" ROUNDS=3`.
bench:
	tests/install-tools bench
	$(CARGO) bench --locked --bench speed -- $(if $(ROUNDS),--rounds $(ROUNDS)) $(CASES)

# The Debian package, in target/deb, of the program that is built here; made in a copy, so that the checkout stays as it is.
deb: build
	tests/install-tools test
	rm -rf $(TARGET_DIR)/deb
	mkdir -p $(TARGET_DIR)/deb/source
	git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -C $(TARGET_DIR)/deb/source -xf -
	cd $(TARGET_DIR)/deb/source && BUILT=1 CARGO_TARGET_DIR=$(abspath $(TARGET_DIR)) dpkg-buildpackage -us -uc -b -d
	rm -rf $(TARGET_DIR)/deb/source
	ls $(TARGET_DIR)/deb/*.deb

.PHONY: all build install demo check test test-full test-parts lint scripts bench deb
