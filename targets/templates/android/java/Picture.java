package edge_template;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.DataInputStream;
import java.io.IOException;
import java.util.zip.DataFormatException;
import java.util.zip.Inflater;

/** A decoded picture: one int a pixel, 0xAARRGGBB, rows from the top. */
public final class Picture {
    private static final long SIGNATURE = 0x89504E470D0A1A0AL;
    private static final int IHDR = 0x49484452;
    private static final int IDAT = 0x49444154;
    private static final int IEND = 0x49454E44;

    private final int[] argb;
    private final int width;
    private final int height;

    /** Holds pixels that a decoder of the caller's gave. */
    public Picture(int[] argb, int width, int height) {
        this.argb = argb;
        this.width = width;
        this.height = height;
    }

    /** Returns the pixels. */
    public int[] argb() {
        return argb;
    }

    /** Returns the width in pixels. */
    public int width() {
        return width;
    }

    /** Returns the height in pixels. */
    public int height() {
        return height;
    }

    /**
     * Returns the picture in a PNG of 8 bits in grey or RGB, as golden pictures are; IOException for any other.
     *
     * It needs neither Android nor a desktop's toolkit, so that tests run on both.
     */
    public static Picture ofPng(byte[] png) throws IOException {
        DataInputStream input = new DataInputStream(new ByteArrayInputStream(png));
        if (input.readLong() != SIGNATURE) {
            throw new IOException("no PNG");
        }
        int width = 0;
        int height = 0;
        int channels = 0;
        ByteArrayOutputStream packed = new ByteArrayOutputStream();
        while (true) {
            int length = input.readInt();
            int kind = input.readInt();
            if (kind == IEND) {
                break;
            }
            if (length < 0 || length > input.available()) {
                throw new IOException("a PNG that was cut off");
            }
            if (kind == IHDR) {
                width = input.readInt();
                height = input.readInt();
                int format = input.readUnsignedByte() << 8 | input.readUnsignedByte();
                channels = format == 0x0800 ? 1 : 3;
                if ((format != 0x0800 && format != 0x0802) || input.readUnsignedShort() != 0 || input.readByte() != 0) {
                    throw new IOException("no PNG of 8 bits in grey or RGB");
                }
            } else {
                byte[] content = new byte[length];
                input.readFully(content);
                if (kind == IDAT) {
                    packed.write(content, 0, length);
                }
            }
            input.readInt();
        }
        byte[] lines = inflated(packed.toByteArray(), (long) height * (1 + (long) width * channels));
        return new Picture(pixels(lines, width, height, channels), width, height);
    }

    private static byte[] inflated(byte[] packed, long size) throws IOException {
        if (size <= 0 || size > Integer.MAX_VALUE) {
            throw new IOException("a PNG without pixels, or with too many");
        }
        Inflater inflater = new Inflater();
        try {
            byte[] lines = new byte[(int) size];
            inflater.setInput(packed);
            int count = 0;
            while (count < lines.length) {
                int more = inflater.inflate(lines, count, lines.length - count);
                if (more == 0) {
                    throw new IOException("a PNG that was cut off");
                }
                count += more;
            }
            return lines;
        } catch (DataFormatException error) {
            throw new IOException("a PNG that is damaged", error);
        } finally {
            inflater.end();
        }
    }

    /** Undoes the filters of the PNG specification, line by line, and returns the pixels. */
    private static int[] pixels(byte[] lines, int width, int height, int channels) throws IOException {
        int[] argb = new int[width * height];
        int bytes = width * channels;
        int[] above = new int[bytes];
        for (int y = 0; y < height; y++) {
            int start = y * (1 + bytes);
            int[] line = new int[bytes];
            for (int x = 0; x < bytes; x++) {
                int left = x < channels ? 0 : line[x - channels];
                int corner = x < channels ? 0 : above[x - channels];
                line[x] = (lines[start + 1 + x] + predicted(lines[start], left, above[x], corner)) & 0xFF;
            }
            for (int x = 0; x < width; x++) {
                int red = line[x * channels];
                int green = line[x * channels + channels / 2];
                int blue = line[x * channels + channels - 1];
                argb[y * width + x] = 0xFF000000 | red << 16 | green << 8 | blue;
            }
            above = line;
        }
        return argb;
    }

    private static int predicted(byte filter, int left, int above, int corner) throws IOException {
        switch (filter) {
            case 0:
                return 0;
            case 1:
                return left;
            case 2:
                return above;
            case 3:
                return (left + above) / 2;
            case 4:
                int toLeft = Math.abs(above - corner);
                int toAbove = Math.abs(left - corner);
                int toCorner = Math.abs(left + above - 2 * corner);
                return toLeft <= toAbove && toLeft <= toCorner ? left : toAbove <= toCorner ? above : corner;
            default:
                throw new IOException("a PNG with an unknown filter");
        }
    }
}
