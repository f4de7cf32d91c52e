//! A seccomp filter for processes that install packages: what a capability alone would allow too much of. Device nodes are
//! those that programs take for granted and no disk; the keys of the node's root are out of reach; and no user namespace is made,
//! in which a process has all capabilities again.
//!
//! It is a list of exceptions: what is not named here the kernel decides, by capabilities and mounts.

use nix::libc::{self, sock_filter};

/// Character devices that may be made, by major and minor number: null, zero, full, random, urandom, tty, console, ptmx.
const DEVICES: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)];

/// How one ABI of the kernel numbers the system calls that are looked at.
struct Abi {
    /// AUDIT_ARCH_*, linux/audit.h.
    arch: u32,
    /// mknod (which newer ABIs lack) and mknodat.
    mknod: Option<u32>,
    mknodat: u32,
    /// add_key, request_key, keyctl.
    keys: [u32; 3],
    unshare: u32,
    /// clone, and which of its arguments has the flags (CONFIG_CLONE_BACKWARDS2 of s390x turns two around).
    clone: (u32, u32),
}

/// clone3 has this number everywhere. Its flags cannot be seen: without it the C library calls clone.
const CLONE3: u32 = 435;
/// CLONE_NEWUSER and CLONE_NEWCGROUP, linux/sched.h.
const NAMESPACES: u32 = 0x1000_0000 | 0x0200_0000;

/// Those of the architectures that Debian has, by their syscall tables. A process of any other ABI is killed.
const ABIS: [Abi; 8] = [
    // x86-64, i386
    Abi {
        arch: 0xc000_003e,
        mknod: Some(133),
        mknodat: 259,
        keys: [248, 249, 250],
        unshare: 272,
        clone: (56, 0),
    },
    Abi {
        arch: 0x4000_0003,
        mknod: Some(14),
        mknodat: 297,
        keys: [286, 287, 288],
        unshare: 310,
        clone: (120, 0),
    },
    // arm64, arm
    Abi { arch: 0xc000_00b7, mknod: None, mknodat: 33, keys: [217, 218, 219], unshare: 97, clone: (220, 0) },
    Abi {
        arch: 0x4000_0028,
        mknod: Some(14),
        mknodat: 324,
        keys: [309, 310, 311],
        unshare: 337,
        clone: (120, 0),
    },
    // riscv64, loong64, ppc64el, s390x
    Abi { arch: 0xc000_00f3, mknod: None, mknodat: 33, keys: [217, 218, 219], unshare: 97, clone: (220, 0) },
    Abi { arch: 0xc000_0102, mknod: None, mknodat: 33, keys: [217, 218, 219], unshare: 97, clone: (220, 0) },
    Abi {
        arch: 0xc000_0015,
        mknod: Some(14),
        mknodat: 288,
        keys: [269, 270, 271],
        unshare: 282,
        clone: (120, 0),
    },
    Abi {
        arch: 0x8000_0016,
        mknod: Some(14),
        mknodat: 290,
        keys: [278, 279, 280],
        unshare: 303,
        clone: (120, 1),
    },
];

/// The first number of x32, which shares the arch of x86-64.
const X32: u32 = 0x4000_0000;

// Classic BPF, linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K,
// BPF_RET|BPF_K.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;

// Offsets in struct seccomp_data, linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const REFUSE: sock_filter = give(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
const UNKNOWN: sock_filter = give(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
const ALLOW: sock_filter = give(libc::SECCOMP_RET_ALLOW);

const fn give(answer: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: answer }
}

const fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

/// The low half of an argument.
const fn load_argument(index: u32) -> sock_filter {
    load(ARGUMENTS + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 })
}

/// `then`, where what was loaded compares so; else what comes after it.
fn when(compare: u16, value: u32, then: Vec<sock_filter>) -> Vec<sock_filter> {
    let length = u8::try_from(then.len()).expect("a jump is short");
    let mut code = vec![sock_filter { code: compare, jt: 0, jf: length, k: value }];
    code.extend(then);
    code
}

/// Whether a node may be made; the argument `mode` stands before that of the device. Ends in an answer.
fn judge_node(mode: u32) -> Vec<sock_filter> {
    let mut code = vec![load_argument(mode), sock_filter { code: AND, jt: 0, jf: 0, k: libc::S_IFMT }];
    code.extend(when(JUMP_EQUAL, libc::S_IFBLK, vec![REFUSE]));
    let mut device = vec![load_argument(mode + 1)];
    for (major, minor) in DEVICES {
        device.extend(when(JUMP_EQUAL, major << 8 | minor, vec![ALLOW]));
    }
    device.push(REFUSE);
    code.extend(when(JUMP_EQUAL, libc::S_IFCHR, device));
    code.push(ALLOW);
    code
}

/// Whether namespaces may be made; `flags` is the argument that names them. Ends in an answer.
fn judge_namespaces(flags: u32) -> Vec<sock_filter> {
    let mut code = vec![load_argument(flags), sock_filter { code: AND, jt: 0, jf: 0, k: NAMESPACES }];
    code.extend(when(JUMP_EQUAL, 0, vec![ALLOW]));
    code.push(REFUSE);
    code
}

/// The filter as the kernel takes it.
pub(super) fn program() -> Vec<sock_filter> {
    let mut code = vec![load(ARCH)];
    for abi in ABIS {
        let mut calls = vec![load(NUMBER)];
        if abi.arch == ABIS[0].arch {
            calls.extend(when(JUMP_NOT_BELOW, X32, vec![UNKNOWN]));
        }
        for number in abi.keys {
            calls.extend(when(JUMP_EQUAL, number, vec![REFUSE]));
        }
        if let Some(mknod) = abi.mknod {
            calls.extend(when(JUMP_EQUAL, mknod, judge_node(1)));
        }
        calls.extend(when(JUMP_EQUAL, abi.mknodat, judge_node(2)));
        calls.extend(when(JUMP_EQUAL, abi.unshare, judge_namespaces(0)));
        calls.extend(when(JUMP_EQUAL, abi.clone.0, judge_namespaces(abi.clone.1)));
        calls.extend(when(JUMP_EQUAL, CLONE3, vec![UNKNOWN]));
        calls.push(ALLOW);
        code.extend(when(JUMP_EQUAL, abi.arch, calls));
    }
    code.push(give(libc::SECCOMP_RET_KILL_PROCESS));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter answers, run as the kernel runs it.
    fn answer(arch: u32, number: u32, arguments: [u32; 4]) -> u32 {
        let code = program();
        let (mut at, mut value) = (0, 0);
        loop {
            let step = code[at];
            let jump = |is_so: bool| usize::from(if is_so { step.jt } else { step.jf });
            at += 1;
            match step.code {
                LOAD if step.k == NUMBER => value = number,
                LOAD if step.k == ARCH => value = arch,
                LOAD => value = arguments[((step.k - ARGUMENTS) / 8) as usize],
                AND => value &= step.k,
                JUMP_EQUAL => at += jump(value == step.k),
                JUMP_NOT_BELOW => at += jump(value >= step.k),
                RETURN => return step.k,
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn disks_and_keys_are_refused_in_every_abi_and_common_devices_are_not() {
        let (refused, allowed) = (REFUSE.k, ALLOW.k);
        for abi in ABIS {
            let node = |mode: u32, device: u32| {
                let at = answer(abi.arch, abi.mknodat, [0, 0, mode, device]);
                if let Some(mknod) = abi.mknod {
                    assert_eq!(answer(abi.arch, mknod, [0, mode, device, 0]), at);
                }
                at
            };
            assert_eq!(node(libc::S_IFBLK | 0o600, 8 << 8), refused);
            assert_eq!(node(libc::S_IFCHR | 0o600, 1 << 8 | 1), refused, "mem");
            assert_eq!(node(libc::S_IFCHR | 0o666, 1 << 8 | 3), allowed, "null");
            assert_eq!(node(libc::S_IFIFO | 0o600, 0), allowed);
            assert_eq!(node(0o600, 0), allowed, "a file");
            for number in abi.keys {
                assert_eq!(answer(abi.arch, number, [0; 4]), refused);
            }
            for flags in [0x1000_0000, 0x0200_0000, 0x1000_0011] {
                let mut of_clone = [0; 4];
                of_clone[abi.clone.1 as usize] = flags;
                assert_eq!(answer(abi.arch, abi.clone.0, of_clone), refused);
                assert_eq!(answer(abi.arch, abi.unshare, [flags, 0, 0, 0]), refused);
            }
            // SIGCHLD alone, and a thread's flags.
            for flags in [17, 0x003d_0f00] {
                assert_eq!(answer(abi.arch, abi.clone.0, [flags; 4]), allowed);
            }
            assert_eq!(answer(abi.arch, abi.unshare, [0x0002_0000, 0, 0, 0]), allowed);
            assert_eq!(answer(abi.arch, CLONE3, [0; 4]), UNKNOWN.k);
            assert_eq!(answer(abi.arch, 1, [0; 4]), allowed);
        }
        assert_eq!(answer(ABIS[0].arch, X32 | 133, [0; 4]), UNKNOWN.k);
        assert_eq!(i64::from(CLONE3), libc::SYS_clone3);
        assert_eq!(answer(1, 1, [0; 4]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn the_numbers_are_those_of_this_machine() {
        let own = ABIS.iter().any(|abi| {
            i64::from(abi.mknodat) == libc::SYS_mknodat
                && abi.keys.map(i64::from) == [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl]
                && i64::from(abi.unshare) == libc::SYS_unshare
                && i64::from(abi.clone.0) == libc::SYS_clone
        });
        assert!(own);
    }
}
