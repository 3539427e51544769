#include "cpu/pages.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace sleepfm {

namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;

struct Block {
    void* address;
    std::size_t size;
};

struct Pool {
    std::mutex mutex;
    std::vector<Block> idle;
    std::size_t idle_bytes = 0, used_bytes = 0, most_used_bytes = 0;
};

Pool& pool() {
    static Pool* const all = new Pool;  // never destroyed: tensors may outlive static objects
    return *all;
}

// The oldest idle blocks go until `room` more bytes fit below the most that was ever in use.
void make_room(Pool& all, std::size_t room) {
    std::size_t freed = 0;
    while (freed < all.idle.size() && all.used_bytes + all.idle_bytes + room > all.most_used_bytes) {
        std::free(all.idle[freed].address);
        all.idle_bytes -= all.idle[freed].size;
        ++freed;
    }
    all.idle.erase(all.idle.begin(), all.idle.begin() + static_cast<std::ptrdiff_t>(freed));
}

}  // namespace

Pages::Pages(std::size_t n_bytes) : block_(nullptr), n_bytes_(n_bytes) {
    held_ = (std::max(n_bytes, std::size_t{1}) + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
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
    }
    all.used_bytes += held_;
    all.most_used_bytes = std::max(all.most_used_bytes, all.used_bytes);
    if (block_ == nullptr) {
        make_room(all, 0);
        block_ = std::aligned_alloc(HUGE_PAGE, held_);
        if (block_ == nullptr) {
            all.used_bytes -= held_;
            throw std::bad_alloc();
        }
#if defined(__linux__)
        madvise(block_, held_, MADV_HUGEPAGE);
#endif
    }
}

Pages::~Pages() {
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
    all.used_bytes -= held_;
    all.idle.push_back({block_, held_});
    all.idle_bytes += held_;
}

std::size_t release_pages() {
    Pool& all = pool();
    std::lock_guard<std::mutex> const lock(all.mutex);
    std::size_t const bytes = all.idle_bytes;
    for (Block const& block : all.idle) {
        std::free(block.address);
    }
    all.idle.clear();
    all.idle_bytes = 0;
    all.most_used_bytes = all.used_bytes;
    return bytes;
}

}  // namespace sleepfm
