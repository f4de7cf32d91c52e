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

all: build

build:
	$(CARGO) build --release --locked

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

# Everything that runs in minutes. One test at a time: each looks at what it left behind on this machine.
test:
	tests/install-tools test
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path fuzz/Cargo.toml
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	shellcheck benches/speed/by-hand tests/install-tools tests/demo tests/fuzz tests/ganeti/cluster tests/upgrade/enter.sh \
	  tests/xen/init tests/xen/make-dom0 tests/upgrade/hooks/10-record tests/upgrade/hooks/20_second \
	  $(addprefix tests/upgrade/field/,beside kpartx read hooks/[0-9]* failing/*) debian/postinst debian/prerm debian/postrm $(HOOKS)
	$(MAKE) deb
	$(CARGO) test --locked --no-fail-fast -- --test-threads=1

# A real one-node Ganeti cluster in namespaces of its own.
test-ganeti: build
	tests/install-tools test
	$(CARGO) test --locked --test ganeti -- --ignored --test-threads=1

# Every way in which a node breaks, one after the other, runs that are killed, damaged disks and streams, then arbitrary
# input for 20 s a target: about fifteen minutes.
test-faults: build
	tests/install-tools test
	$(CARGO) test --locked --no-fail-fast --test faults --test kill --test evil_disks --test stream_faults \
	  --test rounds --test stopped_dead --test templates -- --ignored --test-threads=1
	tests/fuzz 20

# Every kind of disk booted in QEMU, and below a real Xen there; without KVM about a minute each.
test-boot: build
	tests/install-tools test
	$(CARGO) test --locked --no-fail-fast --test boot --test source --test examples --test upgrade --test xen -- --ignored --test-threads=1

# Side by side with the predecessor of Debian's archive: `make bench CASES="export import" ROUNDS=3`.
bench:
	tests/install-tools bench
	$(CARGO) bench --locked --bench speed -- $(if $(ROUNDS),--rounds $(ROUNDS)) $(CASES)

# The Debian package, in target/deb; built from a copy, so that the checkout stays as it is.
deb:
	tests/install-tools test
	rm -rf $(TARGET_DIR)/deb
	mkdir -p $(TARGET_DIR)/deb/source
	git ls-files -z --cached --others --exclude-standard | tar --null -T - -cf - | tar -C $(TARGET_DIR)/deb/source -xf -
	cd $(TARGET_DIR)/deb/source && CARGO_TARGET_DIR=$(abspath $(TARGET_DIR)) dpkg-buildpackage -us -uc -b -d
	rm -rf $(TARGET_DIR)/deb/source
	ls $(TARGET_DIR)/deb/*.deb

.PHONY: all build install demo test test-ganeti test-faults test-boot bench deb
