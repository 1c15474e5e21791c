#include "engine.h"

#ifndef TN_COMMIT
#define TN_COMMIT ""
#endif
#ifndef TN_FLAGS
#define TN_FLAGS ""
#endif
#define STR2(x) #x
#define STR(x) STR2(x)

const char *tn_version(void)
{
    return STR(TN_VERSION_MAJOR) "." STR(TN_VERSION_MINOR) "." STR(TN_VERSION_PATCH);
}

const char *tn_commit(void)
{
    return TN_COMMIT;
}

const char *tn_flags(void)
{
    return TN_FLAGS;
}
