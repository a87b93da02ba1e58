// What the ARM processor has that runs this, beyond NEON: asked of the system.
#pragma once

struct ArmFeatures {
    bool dotprod, i8mm, sve_256;  // sve_256: SVE with i8mm, in vectors of exactly 256 bits
};

ArmFeatures arm_features();
