/* Streams, events and graphs. */
#ifndef TN_EMU_STREAM_H
#define TN_EMU_STREAM_H

#include "internal.h"

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace emu
{

/* One launch of a graph: which of its events have happened. */
struct replay {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<char> happened;
    ~replay()
    {
        TSAN(__tsan_acquire(this);)
    }
};

/* What a stream does next, and what memory must stay for until it is done. */
struct operation {
    /* A graph's operations get the launch they belong to, others NULL. */
    std::function<void(replay *)> run;
    std::shared_ptr<const call> kernel; /* its arguments; NULL: none */
    struct {
        const void *p;
        size_t bytes;
    } range[2] = {}; /* of a copy */
    enum { WORKS, WAITS, WRITES, HOST } kind = WORKS; /* at a flag; HOST: a host function */
    const uint32_t *flag = nullptr;
    uint32_t value = 0;
    bool equal = false;
    template <class F> operation(F f) : run(f) {}
    bool uses(const void *p, size_t bytes) const;
    /* Whether it waits for a value that the flag does not hold. */
    bool waits() const;
};

struct queued {
    operation op;
    std::shared_ptr<replay> launch;
};

} // namespace emu

/* Recorded operations: branch 0 runs in the stream that launches, each other one in its own. */
struct emu_graph {
    struct branch {
        std::vector<emu::operation> operations;
        emu_stream *source = nullptr; /* while capturing */
        int device = 0;               /* of the source */
        emu_stream *own = nullptr;    /* once instantiated; NULL for branch 0 */
        bool joined = true;           /* all it has done is waited for by branch 0 */
    };
    std::vector<branch> branches;
    int n_events = 0;
};

struct emu_stream {
    int device = emu::current_device();
    std::mutex lock;
    std::condition_variable changed;
    std::deque<emu::queued> queue; /* the first one is under way */
    bool quit = false;
    bool opened = false; /* holds the device open; the worker's own */
    emu_graph *capture = nullptr;
    std::thread worker;

    emu_stream();
    ~emu_stream();
    void push(emu::operation op);
    void push(emu::queued q);
    void drain();
    bool idle();
    void open();
    void close();

  private:
    void run();
};

struct emu_event {
    int device = emu::current_device();
    std::mutex lock;
    std::condition_variable changed;
    long recorded = 0, happened = 0;
    double seconds = 0; /* when it last happened */
    bool timed = true;
    emu_graph *graph = nullptr; /* last recorded while capturing: in this graph, */
    int in_graph = 0;           /* as this event of it, */
    size_t branch = 0;          /* in this branch */
};

#endif
