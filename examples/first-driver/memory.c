// SPDX-License-Identifier: GPL-2.0-only
/* The same as in the driver in C: kbuild wants an object for each module. */
#include "../minimal-driver/memory.c"
