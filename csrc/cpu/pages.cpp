#include "cpu/pages.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/poison.h"

namespace sleepfm {

namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;
constexpr std::size_t SMALL_PAGE = std::size_t{64} << 10;  // for up to half a huge page, which are not worth one

std::size_t page_of(std::size_t bytes) {
    return bytes > HUGE_PAGE / 2 ? HUGE_PAGE : SMALL_PAGE;
}

struct Block {
    void* address;
    std::size_t size;
};

struct Pool {
    std::mutex mutex;
    std::vector<Block> idle;
    std::size_t idle_bytes = 0, used_bytes = 0, most_used_bytes = 0;
};

Pool& pool();

Pool* make_pool() {
    Pool* const all = new Pool;
#if defined(__unix__) || defined(__APPLE__)
    // A forked child has a copy of the pool. Were it copied while another thread holds the mutex, it would stay locked
    // for ever, since that thread does not exist in the child; fork therefore waits for the mutex.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
#endif
    return all;
}

Pool& pool() {
    static Pool* const all = make_pool();  // never destroyed: tensors may outlive static objects
    return *all;
}

// Frees idle blocks, the longest idle first, until no more than `bytes` of them are left; returns the bytes freed.
std::size_t free_idle(Pool& all, std::size_t bytes) {
    std::size_t const before = all.idle_bytes;
    std::size_t freed = 0;
    while (all.idle_bytes > bytes) {
        std::free(all.idle[freed].address);
        all.idle_bytes -= all.idle[freed].size;
        ++freed;
    }
    all.idle.erase(all.idle.begin(), all.idle.begin() + static_cast<std::ptrdiff_t>(freed));
    return before - all.idle_bytes;
}

// A new block from the system.
void* allocate(Pool& all, std::size_t bytes) {
    // Blocks in use and idle ones together stay within 5/4 of the most bytes that were ever in use. A quarter more than
    // that most, since a program that does the same again and again needs most blocks of one size at one time and most
    // of another size at another: with none, a training step of the published network gave up to 1,500 pages back and
    // asked for them again.
    std::size_t const used = all.used_bytes + bytes;
    free_idle(all, std::max(all.most_used_bytes + all.most_used_bytes / 4, used) - used);
    void* block = std::aligned_alloc(page_of(bytes), bytes);
    if (block == nullptr && free_idle(all, 0) > 0) {
        block = std::aligned_alloc(page_of(bytes), bytes);
    }
    if (block == nullptr) {
        throw std::bad_alloc();
    }
#if defined(__linux__)
    if (page_of(bytes) == HUGE_PAGE) {
        madvise(block, bytes, MADV_HUGEPAGE);
    }
#endif
    return block;
}

}  // namespace

Pages::Pages(std::size_t n_bytes) : block_(nullptr), n_bytes_(n_bytes) {
    std::size_t const page = page_of(n_bytes);
    held_ = (std::max(n_bytes, std::size_t{1}) + page - 1) / page * page;
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
    // The smallest idle block that is large enough, and not more than a quarter larger than that.
    auto best = all.idle.end();
    for (auto block = all.idle.begin(); block != all.idle.end(); ++block) {
        if (block->size >= held_ && block->size <= held_ + held_ / 4 &&
            (best == all.idle.end() || block->size < best->size)) {
            best = block;
        }
    }
    if (best != all.idle.end()) {
        block_ = best->address;
        held_ = best->size;
        all.idle_bytes -= held_;
        all.idle.erase(best);
    } else {
        block_ = allocate(all, held_);
    }
    all.used_bytes += held_;
    all.most_used_bytes = std::max(all.most_used_bytes, all.used_bytes);
    allow_only(block_, n_bytes_, held_);
}

Pages::~Pages() {
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
    allow_only(block_, 0, held_);
    all.used_bytes -= held_;
    try {
        all.idle.push_back({block_, held_});
        all.idle_bytes += held_;
    } catch (std::bad_alloc const&) {  // no memory for the list itself, and a destructor must not throw
        std::free(block_);
    }
}

std::size_t release_pages() {
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
    std::size_t const bytes = free_idle(all, 0);
    all.most_used_bytes = all.used_bytes;
    return bytes;
}

}  // namespace sleepfm
