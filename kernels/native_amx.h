// Whether the AMX level can be used: the processor's bits are not enough.
#pragma once

#include "native_stream.h"

// Multiply one small tile (native_amx.cpp); dies of SIGILL where tiles are not allowed.
bool amx_multiplies();

// Whether processor and system have AMX, and a small product under a guard is right. Asks
// Linux for the tile registers, which a process must before it uses them (native_amx_check.cpp).
bool amx_is_usable();
