// Where there is no libFuzzer: replays seeds, then mutates them. The same inputs every time.
// usage: NAME NUMBER_OF_INPUTS SEED_FILE ...
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
constexpr size_t kMostBytes = 2000;

Bytes current;

// The input that broke something, to be made a seed.
void Save(int) {
  std::FILE* file = std::fopen("crash-input", "wb");
  if (file != nullptr) {
    std::fwrite(current.data(), 1, current.size(), file);
    std::fclose(file);
    std::fputs("the input is in ./crash-input\n", stderr);
  }
  std::signal(SIGABRT, SIG_DFL);
  std::abort();
}

// One to four small changes: a bit, a byte, bytes copied, cut or put in, or another seed's rest.
Bytes Mutated(const std::vector<Bytes>& seeds, std::minstd_rand* rng) {
  const auto below = [rng](size_t end) { return end == 0 ? 0 : (*rng)() % end; };
  Bytes bytes = seeds[below(seeds.size())];
  for (size_t changes = 1 + below(4); changes > 0; --changes) {
    if (bytes.empty()) bytes.push_back(0);
    const size_t at = below(bytes.size());
    const auto here = bytes.begin() + static_cast<ptrdiff_t>(at);
    const size_t length = 1 + below(std::min<size_t>(bytes.size() - at, 48));
    switch (below(7)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1 << below(8));
        break;
      case 1:
        bytes[at] = static_cast<uint8_t>(below(256));
        break;
      case 2:
        bytes[at] = static_cast<uint8_t>(below(2) == 0 ? 0 : 255);
        break;
      case 3:
        bytes.erase(here, here + static_cast<ptrdiff_t>(length));
        break;
      case 4: {
        const Bytes copy(here, here + static_cast<ptrdiff_t>(length));
        const size_t to = below(bytes.size());
        bytes.insert(bytes.begin() + static_cast<ptrdiff_t>(to), copy.begin(), copy.end());
        break;
      }
      case 5:
        bytes.insert(here, static_cast<uint8_t>(below(256)));
        break;
      default: {
        const Bytes& other = seeds[below(seeds.size())];
        const size_t from = below(other.size());
        bytes.resize(at);
        bytes.insert(bytes.end(), other.begin() + static_cast<ptrdiff_t>(from), other.end());
      }
    }
    if (bytes.size() > kMostBytes) bytes.resize(kMostBytes);
  }
  return bytes;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s NUMBER_OF_INPUTS SEED_FILE ...\n", argv[0]);
    return 2;
  }
  std::signal(SIGABRT, Save);
  std::vector<Bytes> seeds;
  for (int i = 2; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    current = seeds.back();
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  std::minstd_rand rng(1);
  const auto number = std::strtoull(argv[1], nullptr, 10);
  const auto begun = std::chrono::steady_clock::now();
  for (uint64_t i = 0; i < number; ++i) {
    current = Mutated(seeds, &rng);
    LLVMFuzzerTestOneInput(current.data(), current.size());
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begun;
  std::printf("%zu seeds, %llu inputs, %.0f inputs/s\n", seeds.size(),
              static_cast<unsigned long long>(number),
              static_cast<double>(number) / std::max(took.count(), 1e-9));
  return 0;
}
