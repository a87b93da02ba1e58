"""Which processors are emulated, by what files say; and what bits of the kernel mean."""

import pytest

from awqbench.bench.emulation import why_emulated
from awqbench.bench.isa import ARM_FLAGS, arm_flags

MIDR = "sys/devices/system/cpu/cpu0/regs/identification/midr_el1"
ARM = "processor\t: 0\nBogoMIPS\t: {}\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "has_midr", "reason"),
    [
        ("aarch64", ARM.format("243.75"), True, ""),
        ("aarch64", ARM.format("243.75"), False, "identification register"),
        ("aarch64", ARM.format("100.00"), True, "BogoMIPS of 100.00"),
        ("aarch64", "vendor_id\t: GenuineIntel\n", True, "is of GenuineIntel"),
        ("x86_64", "vendor_id\t: GenuineIntel\nmodel name\t: Xeon\n", False, ""),
        ("x86_64", ARM.format("50.00"), True, "is of an ARM one"),
        ("x86_64", "vendor_id\t: VirtualApple\n", False, "VirtualApple"),
        ("x86_64", "model name\t: QEMU TCG CPU version 2.5+\n", False, "TCG"),
        ("riscv64", "", False, ""),
    ],
)
def test_traps_of_emulators(tmp_path, machine, cpuinfo, has_midr, reason):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(cpuinfo)
    if has_midr:
        (tmp_path / MIDR).parent.mkdir(parents=True)
        (tmp_path / MIDR).write_text("0x00000000411fd401\n")
    found = why_emulated(machine=machine, system="Linux", root=tmp_path)
    assert (reason in found) if reason else found == ""


def test_other_systems_have_no_such_files():
    assert why_emulated(machine="ARM64", system="Windows") == ""


def test_bits_of_a_graviton3():
    # AT_HWCAP and AT_HWCAP2 with asimd, asimdhp, asimddp, sve; svei8mm, svebf16, i8mm, bf16.
    found = arm_flags(1 << 1 | 1 << 10 | 1 << 20 | 1 << 22, 0b1_1_1_1 << 12 | 1 << 9)
    assert {name for name, has in found.items() if has} == {
        "asimd", "asimdhp", "asimddp", "sve", "svei8mm", "svebf16", "i8mm", "bf16",
    }  # fmt: skip
    assert tuple(found) == ARM_FLAGS
