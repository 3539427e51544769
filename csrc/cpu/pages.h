// A pool of large blocks of memory: what is freed stays in the process and is handed out again, since each page that is
// fresh from the system costs a fault when it is first touched. Thread-safe, also across fork.
#pragma once

#include <cstddef>

namespace sleepfm {

// A block of at least n_bytes, aligned to 64 KiB or, if larger than 1 MiB, to 2 MiB. Throws std::bad_alloc.
class Pages {
  public:
    explicit Pages(std::size_t n_bytes);
    ~Pages();
    Pages(Pages const&) = delete;
    Pages& operator=(Pages const&) = delete;

    void* data() const { return block_; }
    std::size_t size() const { return n_bytes_; }

  private:
    void* block_;
    std::size_t n_bytes_, held_;
};

// Gives all idle blocks back to the system; returns how many bytes they had.
std::size_t release_pages();

}  // namespace sleepfm
