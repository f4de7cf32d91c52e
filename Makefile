# make demo, make test: all that a newcomer needs. The rest is for those who install or develop.

prefix ?= /usr/local
sysconfdir ?= /etc
CARGO ?= cargo
PROGRAM = ganeti-instance-debootstrap
OS_DIR = $(prefix)/share/ganeti/os/debootstrap
SHARE_DIR = $(prefix)/share/$(PROGRAM)
CONF_DIR = $(sysconfdir)/ganeti/instance-debootstrap
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
	cp -R hooks/. $(DESTDIR)$(prefix)/share/doc/$(PROGRAM)/examples/

.PHONY: all build install
