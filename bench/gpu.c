#include "gpu.h"

#include "row.h"

#include <dlfcn.h>
#include <math.h>
#include <string.h>

/* The few functions that are needed, with the types of nvml.h: a result of 0 is success. */
typedef struct nvml_device *device;
typedef int (*f_void)(void);
typedef int (*f_count)(unsigned *n);
typedef int (*f_handle)(unsigned index, device *d);
typedef int (*f_text)(char *text, unsigned cap);
typedef int (*f_int)(int *value);
typedef int (*f_device_text)(device d, char *text, unsigned cap);
typedef int (*f_number)(device d, unsigned *value);
typedef int (*f_number_of)(device d, int kind, unsigned *value);
typedef int (*f_bits)(device d, unsigned long long *bits);

enum { clock_sm = 1, clock_memory = 2, sensor_gpu = 0 };
enum { reason_power_cap = 0x4, reasons_slow = 0x8 | 0x20 | 0x40 | 0x80 };

static void *library;
static bool tried;
static device in_use;

/* Sets a pointer to a function of the library, NULL where it has none of that name. (dlsym gives an
 * object's pointer; POSIX says it may be a function's.) */
static void get(void *function, const char *name)
{
    void *found = library ? dlsym(library, name) : NULL;
    memcpy(function, &found, sizeof found);
}

static bool open_library(void)
{
    if (!tried) {
        tried = true;
        library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
        f_void init;
        get(&init, "nvmlInit_v2");
        if (library && (!init || init() != 0)) {
            dlclose(library);
            library = NULL;
        }
    }
    return library != NULL;
}

static double number(device d, const char *function, double unit)
{
    f_number f;
    unsigned value;
    get(&f, function);
    return f && f(d, &value) == 0 ? value * unit : NAN;
}

static double number_of(device d, const char *function, int kind)
{
    f_number_of f;
    unsigned value;
    get(&f, function);
    return f && f(d, kind, &value) == 0 ? value : NAN;
}

static unsigned long long throttle_reasons(device d)
{
    unsigned long long bits = 0;
    f_bits f;
    get(&f, "nvmlDeviceGetCurrentClocksThrottleReasons");
    return f && f(d, &bits) == 0 ? bits : 0;
}

static unsigned count_devices(void)
{
    unsigned n = 0;
    f_count f;
    get(&f, "nvmlDeviceGetCount_v2");
    return f && f(&n) == 0 ? n : 0;
}

static device find_device(unsigned index, char name[96])
{
    device d = NULL;
    f_handle handle;
    f_device_text name_of;
    *name = 0;
    get(&handle, "nvmlDeviceGetHandleByIndex_v2");
    get(&name_of, "nvmlDeviceGetName");
    if (!handle || handle(index, &d) != 0) return NULL;
    if (!name_of || name_of(d, name, 96) != 0) *name = 0;
    return d;
}

static void set_number(json_t *o, const char *key, double x)
{
    json_object_set_new(o, key, tn_bench_number(x));
}

static json_t *clocks(device d)
{
    json_t *o = json_object();
    set_number(o, "sm_mhz", number_of(d, "nvmlDeviceGetClockInfo", clock_sm));
    set_number(o, "sm_max_mhz", number_of(d, "nvmlDeviceGetMaxClockInfo", clock_sm));
    set_number(o, "memory_mhz", number_of(d, "nvmlDeviceGetClockInfo", clock_memory));
    set_number(o, "memory_max_mhz", number_of(d, "nvmlDeviceGetMaxClockInfo", clock_memory));
    json_object_set_new(o, "throttle_reasons", json_integer((json_int_t)throttle_reasons(d)));
    return o;
}

static json_t *pcie(device d)
{
    json_t *o = json_object();
    set_number(o, "generation", number(d, "nvmlDeviceGetCurrPcieLinkGeneration", 1));
    set_number(o, "width", number(d, "nvmlDeviceGetCurrPcieLinkWidth", 1));
    set_number(o, "max_generation", number(d, "nvmlDeviceGetMaxPcieLinkGeneration", 1));
    set_number(o, "max_width", number(d, "nvmlDeviceGetMaxPcieLinkWidth", 1));
    return o;
}

static json_t *describe(unsigned index)
{
    char name[96], driver[96] = "";
    int cuda = 0;
    const device d = find_device(index, name);
    f_text driver_of;
    f_int cuda_of;
    get(&driver_of, "nvmlSystemGetDriverVersion");
    get(&cuda_of, "nvmlSystemGetCudaDriverVersion_v2");
    if (!driver_of || driver_of(driver, sizeof driver) != 0) *driver = 0;
    if (!cuda_of || cuda_of(&cuda) != 0) cuda = 0;
    json_t *o = json_object();
    json_object_set_new(o, "index", json_integer(index));
    json_object_set_new(o, "name", *name ? json_string(name) : json_null());
    json_object_set_new(o, "driver", *driver ? json_string(driver) : json_null());
    json_object_set_new(o, "cuda", cuda ? json_integer(cuda) : json_null());
    if (!d) return o;
    json_object_set_new(o, "clock", clocks(d));
    json_object_set_new(o, "pcie", pcie(d));
    set_number(o, "power_cap_watts", number(d, "nvmlDeviceGetPowerManagementLimit", 1e-3));
    set_number(o, "power_watts", number(d, "nvmlDeviceGetPowerUsage", 1e-3));
    set_number(o, "celsius", number_of(d, "nvmlDeviceGetTemperature", sensor_gpu));
    return o;
}

json_t *tn_bench_gpus_json(void)
{
    if (!open_library()) return json_null();
    json_t *list = json_array();
    for (unsigned i = 0; i < count_devices(); i++)
        json_array_append_new(list, describe(i));
    return list;
}

void tn_bench_gpu_use(const char *name, int index)
{
    in_use = NULL;
    if (!open_library()) return;
    for (unsigned i = 0; i < count_devices(); i++) {
        char found[96];
        const device d = find_device(i, found);
        if (d && strcmp(found, name) == 0 && (!in_use || (int)i == index)) in_use = d;
    }
}

tn_bench_gpu_moment tn_bench_gpu_look(void)
{
    tn_bench_gpu_moment m = {NAN, false, false};
    if (!in_use) return m;
    const unsigned long long reasons = throttle_reasons(in_use);
    m.clock_mhz = number_of(in_use, "nvmlDeviceGetClockInfo", clock_sm);
    m.slowed = (reasons & reasons_slow) != 0;
    m.power_cap = (reasons & reason_power_cap) != 0;
    return m;
}
