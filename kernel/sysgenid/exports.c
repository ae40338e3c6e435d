// SPDX-License-Identifier: GPL-2.0-only
/*
 * Exports from this module. Rust modules cannot export symbols themselves.
 */

#include <linux/export.h>

#include "sysgenid.h"

EXPORT_SYMBOL_GPL(sysgenid_bump_generation);
EXPORT_SYMBOL_GPL(sysgenid_reseed);
EXPORT_SYMBOL_GPL(sysgenid_register_backend);
EXPORT_SYMBOL_GPL(sysgenid_unregister_backend);
