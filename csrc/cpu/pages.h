// Large blocks of memory that are kept when they are freed and handed out again.
#pragma once

#include <cstddef>

namespace sleepfm {

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

// Give all idle blocks back to the system; returns their bytes.
std::size_t release_pages();

}  // namespace sleepfm
